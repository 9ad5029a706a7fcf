package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// On a disk of 200 MB the server works until it is full, says so, stays alive,
// starts again, keeps what it has acknowledged, and works when there is space.
func TestFullDisk(t *testing.T) {
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=200m"); err != nil {
		t.Skipf("mounting a tmpfs needs root: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(disk, unix.MNT_DETACH) })
	data := filepath.Join(disk, "data")
	acked := map[digest.Digest][]byte{}
	n := 0
	push := func(p *process, size int) reply {
		n++
		body := []byte(strings.Repeat(fmt.Sprintf("%07d\n", n), size/8))
		d := digest.FromBytes(body)
		r := ask(p.HTTP, "POST", "/v2/a/blobs/uploads/?digest="+string(d), body)
		if r.status == http.StatusCreated {
			acked[d] = body
		}
		return r
	}
	reads := func(p *process) {
		t.Helper()
		for d, body := range acked {
			if r := ask(p.HTTP, "GET", "/v2/a/blobs/"+string(d), nil); r.status != http.StatusOK || string(r.body) != string(body) {
				t.Errorf("%s: %v", d, r)
			}
		}
	}
	full := func(p *process) {
		t.Helper()
		if r := push(p, 8<<20); r.status != http.StatusInsufficientStorage || !strings.Contains(string(r.body), "bytes are free") {
			t.Errorf("a push onto a full disk: %v", r)
		}
		reads(p)
		if r := ask(p.HTTP, "GET", "/healthz", nil); r.status != http.StatusOK {
			t.Errorf("/healthz: %v", r)
		}
	}

	p := startProcess(t, data, nil).ready()
	for {
		if r := push(p, 8<<20); r.status != http.StatusCreated {
			break
		}
	}
	for push(p, 256<<10).status == http.StatusCreated { // to the brim
	}
	if len(acked) < 8 {
		t.Errorf("only %d blobs fitted", len(acked))
	}
	full(p)
	if r := ask(p.HTTP, "GET", "/readyz", nil); r.status != http.StatusServiceUnavailable || !strings.HasPrefix(string(r.body), "read-only") {
		t.Errorf("/readyz: %v", r)
	}

	p.stop()
	p = startProcess(t, data, nil).ready()
	full(p)
	p.kill()
	p = startProcess(t, data, nil).ready()
	full(p)

	// Somebody else takes what is left, to the last byte.
	filler, err := os.Create(filepath.Join(disk, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	for piece := 1 << 20; piece > 0; piece /= 2 {
		for err = nil; err == nil; {
			_, err = io.WriteString(filler, strings.Repeat("x", piece))
		}
	}
	filler.Close()
	full(p)
	p.stop()

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	started := make(chan *process)
	go func() { started <- startProcess(t, data, nil, "--addr", addr) }()
	var r reply
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline) && r.status != http.StatusInsufficientStorage; time.Sleep(20 * time.Millisecond) {
		r = ask("http://"+addr, "GET", "/v2/", nil)
	}
	if r.status != http.StatusInsufficientStorage || !strings.Contains(string(r.body), "recovering: ") || !strings.Contains(string(r.body), "bytes are free") {
		t.Errorf("a start on a disk without a free byte: %v", r)
	}
	if err := os.Remove(filepath.Join(disk, "filler")); err != nil {
		t.Fatal(err)
	}
	p = (<-started).ready()
	full(p)
	// Space returns: here, because the disk grows.
	if err := unix.Mount("tmpfs", disk, "tmpfs", unix.MS_REMOUNT, "size=300m"); err != nil {
		t.Fatal(err)
	}
	if r := push(p, 8<<20); r.status != http.StatusCreated {
		t.Errorf("with space again: %v", r)
	}
	if r := ask(p.HTTP, "GET", "/readyz", nil); r.status != http.StatusOK {
		t.Errorf("/readyz: %v", r)
	}
	reads(p)
	p.stop()
	p.fsck()
}
