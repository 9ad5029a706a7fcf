package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"testing"

	"github.com/opencontainers/go-digest"
)

// io is what a process has read, of any kind and from disks, in bytes
// (proc(5), /proc/pid/io).
func (p *process) io() (read, fromDisk int64) {
	p.t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", p.PID))
	if err != nil {
		p.t.Fatal(err)
	}
	field := func(name string) int64 {
		m := regexp.MustCompile(`(?m)^` + name + `: (\d+)$`).FindSubmatch(raw)
		if m == nil {
			p.t.Fatalf("/proc/%d/io has no %s:\n%s", p.PID, name, raw)
		}
		n, _ := strconv.ParseInt(string(m[1]), 10, 64)
		return n
	}
	return field("rchar"), field("read_bytes")
}

// A pushed blob is read once, from the network: nothing of it is read back
// before 201, unless the client hid the algorithm until the end, which shows
// that this test would see it.
func TestNothingIsReadBack(t *testing.T) {
	p := startProcess(t, t.TempDir(), nil).ready()
	content := make([]byte, 24<<20)
	for i, c := range []struct {
		name     string
		alg      digest.Algorithm
		announce string
		chunked  bool // a PATCH with all of it first
		twice    bool
	}{
		{"sha256, one PUT", digest.SHA256, "", false, false},
		{"sha256, a PATCH and a PUT", digest.SHA256, "", true, false},
		{"sha512 announced, a PATCH and a PUT", digest.SHA512, "?digest-algorithm=sha512", true, false},
		{"sha512, one PUT", digest.SHA512, "", false, false},
		{"sha512 that nobody announced, a PATCH and a PUT", digest.SHA512, "", true, true},
	} {
		rand.NewChaCha8([32]byte{byte(i)}).Read(content)
		want := c.alg.FromBytes(content)
		read, fromDisk := p.io()
		r := ask(p.HTTP, http.MethodPost, "/v2/m/blobs/uploads/"+c.announce, nil)
		if r.status != http.StatusAccepted {
			t.Fatalf("%s: %v", c.name, r)
		}
		body := content
		if c.chunked {
			if r = ask(p.HTTP, http.MethodPatch, r.header.Get("Location"), content, "Content-Type", "application/octet-stream"); r.status != http.StatusAccepted {
				t.Fatalf("%s: %v", c.name, r)
			}
			body = nil
		}
		if r = ask(p.HTTP, http.MethodPut, r.header.Get("Location")+"?digest="+string(want), body); r.status != http.StatusCreated {
			t.Fatalf("%s: %v", c.name, r)
		}
		readAfter, fromDiskAfter := p.io()
		read, fromDisk = readAfter-read, fromDiskAfter-fromDisk
		n := int64(len(content))
		if twice := read > n*3/2; twice != c.twice {
			t.Errorf("%s: the server read %d bytes for a blob of %d", c.name, read, n)
		}
		if fromDisk > n/10 && !c.twice {
			t.Errorf("%s: the server read %d bytes from the disk for a blob of %d", c.name, fromDisk, n)
		}
		got := ask(p.HTTP, http.MethodGet, "/v2/m/blobs/"+string(want), nil)
		if !bytes.Equal(got.body, content) {
			t.Errorf("%s: other bytes come back: %d", c.name, got.status)
		}
	}
}
