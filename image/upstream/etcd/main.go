// etcd as its own main package builds it, and beside it the part of etcdutl that makes the data of a new member from a snapshot: they
// share all of their code.
//
// The program that runs is named by the base name of argv[0].
package main

import (
	"os"
	"path/filepath"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() {
	if filepath.Base(os.Args[0]) == "etcd-restore" {
		os.Exit(restore(os.Args))
	}
	etcdmain.Main(os.Args)
}
