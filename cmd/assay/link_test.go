package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/assay-dev/assay/verify/attest"
)

// A wire is a network between a client and the server that counts, stalls and
// breaks. It stands between them as a proxy.
type wire struct {
	listener net.Listener

	mu      sync.Mutex
	target  string // guarded by mu, as all below
	carried int64  // bytes, both ways
	left    int64  // until it stalls or breaks; -1: never
	pace    int64  // bytes a second; 0: as fast as it can
	breaks  bool   // then it breaks once, and is whole again; else it stalls
	stalled chan struct{}
	conns   []net.Conn
}

func (w *wire) serve() {
	for {
		client, err := w.listener.Accept()
		if err != nil {
			return
		}
		w.mu.Lock()
		server, err := net.Dial("tcp", w.target)
		if err != nil {
			client.Close()
		} else {
			w.conns = append(w.conns, client, server)
			go w.carry(client, server)
			go w.carry(server, client)
		}
		w.mu.Unlock()
	}
}

func (w *wire) carry(from, to net.Conn) {
	defer from.Close()
	defer to.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			w.mu.Lock()
			pace := w.pace
			w.mu.Unlock()
			if pace > 0 {
				time.Sleep(time.Duration(n) * time.Second / time.Duration(pace))
			}
			if !w.pass(int64(n)) {
				return
			}
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// pass reports whether n bytes may go on; it does not return while the wire is
// stalled.
func (w *wire) pass(n int64) bool {
	w.mu.Lock()
	if w.left < 0 || n <= w.left {
		w.carried += n
		if w.left >= 0 {
			w.left -= n
		}
		w.mu.Unlock()
		return true
	}
	if w.breaks {
		w.breaks, w.left = false, -1
		w.drop()
		w.mu.Unlock()
		return false
	}
	w.left = 0
	stalled := w.stalled
	select {
	case <-stalled:
	default:
		close(stalled)
	}
	w.mu.Unlock()
	time.Sleep(time.Hour) // the story ends its connection
	return false
}

// drop breaks all connections. w.mu is held.
func (w *wire) drop() {
	for _, c := range w.conns {
		c.Close()
	}
	w.conns = nil
}

var wires sync.Map // of *wire by work directory

// throughWire puts a wire between the client and the server, and works on it:
//
//	wire                 from now on commands go through it
//	wire cut BYTES       after so many bytes it stalls
//	wire break BYTES     after so many bytes its connections break, once
//	wire pace RATE       each connection carries so many bytes a second
//	wire open            it is whole and fast again, to the server that runs now
//	wire carried MIN MAX how many bytes it has carried since it was opened
func throughWire(ts *testscript.TestScript, neg bool, args []string) {
	work := ts.Getenv("WORK")
	v, ok := wires.Load(work)
	if !ok {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		ts.Check(err)
		ts.Defer(func() { l.Close() })
		v = &wire{listener: l, left: -1, target: ts.Getenv("HOST")}
		wires.Store(work, v)
		go v.(*wire).serve()
	}
	w := v.(*wire)
	w.mu.Lock()
	defer w.mu.Unlock()
	number := func(s string) int64 {
		n, err := strconv.ParseInt(s, 10, 64)
		ts.Check(err)
		return n
	}
	switch {
	case len(args) == 0 || args[0] == "open":
		w.drop()
		w.target, w.carried, w.left, w.pace = ts.Getenv("HOST"), 0, -1, 0
		ts.Setenv("ASSAY_SERVER", "http://"+w.listener.Addr().String())
	case args[0] == "pace":
		w.pace = number(args[1])
	case args[0] == "cut" || args[0] == "break":
		w.left, w.breaks, w.stalled = number(args[1]), args[0] == "break", make(chan struct{})
	case args[0] == "carried":
		if w.carried < number(args[1]) || w.carried > number(args[2]) {
			ts.Fatalf("the wire carried %d bytes, not from %s to %s", w.carried, args[1], args[2])
		}
	default:
		ts.Fatalf("wire %v", args)
	}
}

// killed PROGRAM ARGS... runs a program until the wire stalls, and kills it.
func killed(ts *testscript.TestScript, neg bool, args []string) { untilStalled(ts, os.Kill, args) }

// broken-off PROGRAM ARGS... does so with the signal of Ctrl-C, and writes what it
// has printed into the file printed.
func brokenOff(ts *testscript.TestScript, neg bool, args []string) {
	ts.Check(os.WriteFile(ts.MkAbs("printed"), untilStalled(ts, os.Interrupt, args), 0o600))
}

func untilStalled(ts *testscript.TestScript, end os.Signal, args []string) []byte {
	v, ok := wires.Load(ts.Getenv("WORK"))
	if !ok {
		ts.Fatalf("there is no wire")
	}
	w := v.(*wire)
	w.mu.Lock()
	stalled := w.stalled
	w.mu.Unlock()
	program, err := exec.LookPath(args[0])
	ts.Check(err)
	var out bytes.Buffer
	cmd := exec.Command(program, args[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = ts.Getenv("WORK"), &out, &out
	for _, name := range []string{"HOME", "ASSAY_SERVER", "PATH"} {
		cmd.Env = append(cmd.Env, name+"="+ts.Getenv(name))
	}
	ts.Check(cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case <-stalled:
		// What is under way goes on arriving for a moment.
		time.Sleep(200 * time.Millisecond)
		cmd.Process.Signal(end)
		<-ended
		return out.Bytes()
	case err := <-ended:
		ts.Fatalf("%v ended before the wire stalled: %v\n%s", args, err, out.Bytes())
	case <-time.After(time.Minute):
		cmd.Process.Kill()
		ts.Fatalf("the wire does not stall under %v\n%s", args, out.Bytes())
	}
	return nil
}

// random FILE BYTES writes bytes that do not repeat.
func random(ts *testscript.TestScript, neg bool, args []string) {
	n, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	f, err := os.Create(ts.MkAbs(args[0]))
	ts.Check(err)
	_, err = io.CopyN(f, rand.NewChaCha8([32]byte{byte(len(args[0]))}), n)
	ts.Check(errors.Join(err, f.Close()))
}

// A list of pieces that is wrong costs a second look at the whole file, and not
// the file: anybody who may push can attach one.
func TestWrongList(t *testing.T) {
	p := startProcess(t, t.TempDir(), nil).ready()
	g := &globals{server: p.HTTP, quiet: true, output: "text", out: io.Discard, err: io.Discard}
	dir := t.TempDir()
	content := make([]byte, 2*attest.PieceSize+5)
	rand.NewChaCha8([32]byte{9}).Read(content)
	if err := os.WriteFile(filepath.Join(dir, "model.bin"), content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := push(t.Context(), g, "m:1.0.0", []string{filepath.Join(dir, "model.bin")}, pushOptions{format: "oras"}); err != nil {
		t.Fatal(err)
	}
	repo, _, err := g.repository("m:1.0.0")
	if err != nil {
		t.Fatal(err)
	}
	h := attest.NewPieceHash(digest.SHA256)
	h.Write(content)
	list, ok := attest.PiecesOf(h.Digest(), int64(len(content)), h.States())
	if !ok {
		t.Fatal("there is no list")
	}
	for _, wrong := range []bool{false, true} {
		if wrong {
			list.States = bytes.Clone(list.States)
			list.States[3] ^= 1
		}
		f, err := os.Create(filepath.Join(dir, "out"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		d := &download{
			link: newLink(repo), desc: ocispec.Descriptor{Digest: h.Digest(), Size: int64(len(content))}, name: "out",
			file: f, list: &list, slots: newSlots(2), bar: g.progress("pulling", 1, true),
		}
		if err := d.run(t.Context()); err != nil {
			t.Errorf("with a wrong list (%v): %v", wrong, err)
		}
		if (len(d.disputed) > 0) != wrong {
			t.Errorf("with a wrong list (%v) pieces %v are disputed", wrong, d.disputed)
		}
		got, err := os.ReadFile(filepath.Join(dir, "out"))
		if err != nil || !bytes.Equal(got, content) {
			t.Errorf("with a wrong list (%v): %d bytes, or others: %v", wrong, len(got), err)
		}
	}
}

// sessions N checks how many uploads the server has that are not finished.
func sessions(ts *testscript.TestScript, neg bool, args []string) {
	resp, err := http.Get("http://" + ts.Getenv("HOST") + "/metrics")
	ts.Check(err)
	raw, err := io.ReadAll(resp.Body)
	ts.Check(errors.Join(err, resp.Body.Close()))
	if !bytes.Contains(raw, []byte("\nassay_uploads_running "+args[0]+"\n")) {
		ts.Fatalf("there are not %s uploads:\n%s", args[0], raw)
	}
}

// pieces REPOSITORY TAG waits until lists of pieces are published.
func pieces(ts *testscript.TestScript, neg bool, args []string) {
	base := "http://" + ts.Getenv("HOST") + "/v2/" + args[0]
	for range 200 {
		resp, err := http.Head(base + "/manifests/" + args[1])
		ts.Check(err)
		resp, err = http.Get(base + "/referrers/" + resp.Header.Get("Docker-Content-Digest") + "?artifactType=" + strings.ReplaceAll(attest.PiecesType, "+", "%2B"))
		ts.Check(err)
		raw, err := io.ReadAll(resp.Body)
		ts.Check(errors.Join(err, resp.Body.Close()))
		if bytes.Contains(raw, []byte(fmt.Sprintf("%q", attest.PiecesType))) {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	ts.Fatalf("no lists of pieces of %v are published", args)
}
