package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// networkVariable tells this program that it runs in a network of its own.
const networkVariable = "ASSAY_BENCH_NETWORK"

// congestion is where a network's congestion control is read and set.
const congestion = "/proc/sys/net/ipv4/tcp_congestion_control"

// inOwnNetwork runs this program again in a network namespace that has nothing
// but a loopback, and returns its exit status; ok is false if that cannot be
// done here.
//
// What is measured is programs, and a machine's own setting can be between them:
// BBR, which some have by default, paces what it sends at the rate that it
// believes the path to have. A loopback has none, so single pulls differed by a
// factor of five, whoever served, and were three times slower than what the
// programs can do. Reno, which each kernel has, sends what it is given.
func inOwnNetwork() (status int, ok bool) {
	self, err := os.Executable()
	if err != nil {
		return 0, false
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), networkVariable+"=own")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	// A Ctrl-C is for the other: it ends, and then this one.
	signal.Notify(make(chan os.Signal, 1), os.Interrupt, syscall.SIGTERM)
	defer signal.Reset()
	if err := cmd.Start(); err != nil {
		return 0, false
	}
	var ended *exec.ExitError
	if err := cmd.Wait(); errors.As(err, &ended) {
		return max(ended.ExitCode(), 1), true
	} else if err != nil {
		return 1, true
	}
	return 0, true
}

// setUpNetwork makes the new namespace's loopback one that can be used.
func setUpNetwork() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_LOOPBACK | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("the loopback: %w", err)
	}
	return os.WriteFile(congestion, []byte("reno"), 0)
}

// network says over what the programs talk.
func network() string {
	raw, _ := os.ReadFile(congestion)
	whose := "the machine's loopback"
	if os.Getenv(networkVariable) != "" {
		whose = "a loopback of its own"
	}
	return whose + " with " + strings.TrimSpace(string(raw))
}
