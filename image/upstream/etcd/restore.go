package main

import (
	"flag"
	"fmt"
	"os"

	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.uber.org/zap"
)

// restore does what `etcdutl snapshot restore` does for a cluster of one member. The flags have etcdutl's names.
func restore(args []string) int {
	var config snapshot.RestoreConfig
	var url string
	flags := flag.NewFlagSet("etcd-restore", flag.ContinueOnError)
	flags.StringVar(&config.SnapshotPath, "snapshot", "", "the snapshot, or the database of a member that does not run")
	flags.StringVar(&config.OutputDataDir, "data-dir", "", "the folder to make")
	flags.StringVar(&config.Name, "name", "", "the name of the member")
	flags.StringVar(&url, "initial-advertise-peer-urls", "", "where others are to reach the member")
	flags.StringVar(&config.InitialClusterToken, "initial-cluster-token", "", "what tells the new cluster from any other")
	flags.BoolVar(&config.SkipHashCheck, "skip-hash-check", false, "the file is a database and ends without a hash")
	flags.Uint64Var(&config.RevisionBump, "bump-revision", 0, "how much to increase the revision")
	flags.BoolVar(&config.MarkCompacted, "mark-compacted", false, "whether older revisions are gone for those who watch")
	if flags.Parse(args[1:]) != nil {
		return 2
	}
	config.PeerURLs = []string{url}
	config.InitialCluster = config.Name + "=" + url

	log, err := zap.NewProduction()
	if err == nil {
		err = snapshot.NewV3(log).Restore(config)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "etcd-restore:", err)
		return 1
	}
	return 0
}
