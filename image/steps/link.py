#!/usr/bin/env python3
"""A link for several machines in QEMU, with a router to this host and beyond.

usage: link.py DIRECTORY [HOST_PORT ADDRESS PORT]...

The machine with number N is at DIRECTORY/machine-N.sock and sends to DIRECTORY/switch-N.sock, a frame in each datagram. The router is a
QEMU without a machine: it has number 0, serves DHCP in 10.0.2.0/24 (the first machine that asks gets 10.0.2.15), and leads from ports of
this host to those of machines; more of them are added at DIRECTORY/router.sock (QMP). Runs until SIGTERM, or until the router ends.
"""

import os
import select
import signal
import socket
import subprocess
import sys

PLACES = 8
FRAME_MAX = 65536
# QEMU's user network takes every packet for one to be routed, whatever its hardware address: it must not see those between machines.
ROUTER = 0


def netdev(name, own, other):
    return f"dgram,id={name},local.type=unix,local.path={own},remote.type=unix,remote.path={other}"


def start_router(folder, forwards):
    rules = "".join(f",hostfwd=tcp:127.0.0.1:{port}-{address}:{there}" for port, address, there in forwards)
    link = netdev("link", f"{folder}/machine-{ROUTER}.sock", f"{folder}/switch-{ROUTER}.sock")
    return subprocess.Popen(
        ["qemu-system-x86_64", "-M", "none", "-nodefaults", "-display", "none"]
        + ["-netdev", f"user,id=router{rules}", "-netdev", "hubport,id=h0,hubid=0,netdev=router"]
        + ["-netdev", link, "-netdev", "hubport,id=h1,hubid=0,netdev=link"]
        + ["-qmp", f"unix:{folder}/router.sock,server=on,wait=off"],
        stdin=subprocess.DEVNULL,
    )


def bind(path):
    if os.path.exists(path):
        os.remove(path)
    place = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    place.setblocking(False)
    place.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    place.bind(path)
    return place


def switch(folder, places, router):
    known = {}
    by_descriptor = {place.fileno(): number for number, place in enumerate(places)}
    poll = select.poll()
    for descriptor in by_descriptor:
        poll.register(descriptor, select.POLLIN)
    while router.poll() is None:
        for descriptor, _ in poll.poll(1000):
            number = by_descriptor[descriptor]
            try:
                frame = places[number].recv(FRAME_MAX)
            except BlockingIOError:
                continue
            to, sender = frame[:6], frame[6:12]
            known[sender] = number
            if to[0] & 1:
                targets = range(len(places))
            elif to in known:
                targets = [known[to]]
            else:
                targets = range(ROUTER + 1, len(places))
            for target in targets:
                if target != number:
                    try:
                        places[target].sendto(frame, f"{folder}/machine-{target}.sock")
                    except OSError:
                        pass  # A machine that is off, or one that is too slow: a link loses frames.
    return router.returncode


def main():
    folder, rest = sys.argv[1], sys.argv[2:]
    forwards = list(zip(rest[0::3], rest[1::3], rest[2::3]))
    places = [bind(f"{folder}/switch-{number}.sock") for number in range(PLACES + 1)]
    router = start_router(folder, forwards)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        sys.exit(switch(folder, places, router))
    finally:
        router.kill()
        router.wait()


main()
