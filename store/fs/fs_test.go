package fs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-dev/assay/store"
	"github.com/assay-dev/assay/store/storetest"
)

func open(t testing.TB, dir string, opt Options) *Blobs {
	t.Helper()
	b, err := Open(dir, opt)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestBlobs(t *testing.T) {
	for name, opt := range map[string]Options{"as it is": {}, "with syncs behind all writes": {flushAfter: 1}} {
		t.Run(name, func(t *testing.T) {
			storetest.TestBlobs(t, storetest.BlobsFactory{
				Open:  func(t testing.TB) store.Blobs { return open(t, filepath.Join(t.TempDir(), "blobs"), opt) },
				Crash: func(t testing.TB, b store.Blobs) store.Blobs { return open(t, b.(*Blobs).dir, opt) },
			})
		})
	}
}

// What is written is synced while more is written, up to a bound; then it waits
// for the disk.
func TestSyncsGoOnBehind(t *testing.T) {
	const after = 1000
	started, release := make(chan bool, 10), make(chan bool)
	var released atomic.Bool
	b := open(t, filepath.Join(t.TempDir(), "blobs"), Options{flushAfter: after, fail: func(op, path string) error {
		if op == "fdatasync" {
			started <- true
			<-release
		}
		return nil
	}})
	w, err := b.Create(t.Context(), -1)
	if err != nil {
		t.Fatal(err)
	}
	write := func(n int) {
		t.Helper()
		if _, err := io.WriteString(w, strings.Repeat("x", n)); err != nil {
			t.Fatal(err)
		}
	}
	write(after - 1)
	write(1)
	if len(started) > 0 {
		t.Fatal("a sync of less than what makes one")
	}
	// From here on one goes on, and the disk does not move.
	for range flushBound / flushAfter {
		write(after)
	}
	<-started
	if len(started) > 0 {
		t.Fatal("two syncs at once")
	}
	go func() {
		time.Sleep(50 * time.Millisecond) // a write that does not wait is done by then
		released.Store(true)
		close(release)
	}()
	write(1)
	if !released.Load() {
		t.Errorf("more than %d bytes were written while the disk stood still", flushBound/flushAfter*after)
	}
	<-started // what came meanwhile
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if r, err := b.Resume(t.Context(), w.Key()); err != nil || r.Size() != (1+flushBound/flushAfter)*after+1 {
		t.Errorf("resumed at %d: %v", r.Size(), err)
	} else {
		r.Close()
	}
}

// Syncs behind what is written take turns, and one that has not had its turn
// holds up nobody who syncs all himself.
func TestSyncsBehindTakeTurns(t *testing.T) {
	const after = 1000
	var mu sync.Mutex
	var synced []string
	started, release := make(chan bool, 10), make(chan bool)
	b := open(t, filepath.Join(t.TempDir(), "blobs"), Options{flushAfter: after, fail: func(op, path string) error {
		if op == "fdatasync" {
			mu.Lock()
			synced = append(synced, path)
			first := len(synced) == 1
			mu.Unlock()
			if first {
				started <- true
				<-release
			}
		}
		return nil
	}})
	var writers []store.BlobWriter
	for range 3 {
		w, err := b.Create(t.Context(), -1)
		if err != nil {
			t.Fatal(err)
		}
		writers = append(writers, w)
	}
	for i, w := range writers { // the second half of each is what makes a sync
		for range 2 {
			if _, err := io.WriteString(w, strings.Repeat("x", after)); err != nil {
				t.Fatal(err)
			}
		}
		if i == 0 {
			<-started
		}
	}
	if err := writers[1].Commit(); err != nil {
		t.Fatal(err)
	}
	if w := writers[2].(*writer); w.flushed != after {
		t.Errorf("a sync of %d bytes waits for its turn", w.flushed)
	} else if err := w.Truncate(after / 2); err != nil || w.flushed != 0 {
		t.Errorf("after it was dropped %d bytes are taken for synced, %v", w.flushed, err)
	}
	mu.Lock()
	if len(synced) != 1 {
		t.Errorf("while one went on, others did: %q", synced)
	}
	mu.Unlock()
	close(release)
	// The turn is free again.
	if _, err := io.WriteString(writers[2], strings.Repeat("y", after)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(writers[2], "z"); err != nil {
		t.Fatal(err)
	}
	for _, w := range []store.BlobWriter{writers[0], writers[2]} {
		if f := w.(*writer).flush; f != nil {
			<-f.done
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if len(synced) != 2 || synced[0] == synced[1] {
		t.Errorf("synced %q", synced)
	}
}

// A sync that fails behind what is written is as bad as any other: nothing of
// what comes after it is acknowledged.
func TestFailedSyncBehind(t *testing.T) {
	for name, next := range map[string]func(store.BlobWriter) error{
		"write":  func(w store.BlobWriter) error { _, err := io.WriteString(w, "more"); return err },
		"sync":   store.BlobWriter.Sync,
		"commit": store.BlobWriter.Commit,
	} {
		t.Run(name, func(t *testing.T) {
			failed := false
			b := open(t, filepath.Join(t.TempDir(), "blobs"), Options{flushAfter: 1, fail: func(op, path string) error {
				if op == "fdatasync" && !failed {
					failed = true
					return errors.New("disk says no")
				}
				return nil
			}})
			w, err := b.Create(t.Context(), -1)
			if err != nil {
				t.Fatal(err)
			}
			io.WriteString(w, "hello")
			io.WriteString(w, "hello") // begins the sync
			if name == "write" {
				w.(*writer).flushing() // which the others wait for
			}
			if err := next(w); !errors.Is(err, store.ErrPoisoned) || !strings.Contains(err.Error(), "disk says no") {
				t.Errorf("a sync failed, and then: %v", err)
			}
			w.Close()
			if _, err := b.Open(t.Context(), w.Key()); err == nil {
				t.Error("the blob can be read")
			}
		})
	}
}

func TestFileIsFound(t *testing.T) {
	b := open(t, t.TempDir(), Options{})
	w, err := b.Create(t.Context(), -1)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(w, "hello")
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	r, err := b.Open(t.Context(), w.Key())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if f, ok := store.FileOf(r); !ok || f == nil {
		t.Error("no *os.File behind a blob: sendfile is lost")
	}
}

// Each sync of a commit fails once: the commit must fail, the blob must not
// be readable, and nothing may be written afterwards.
func TestFailedSyncs(t *testing.T) {
	errDisk := errors.New("disk says no")
	for n := range 10 {
		count := -1000 // syncs of Open do not count
		var ops []string
		b := open(t, filepath.Join(t.TempDir(), "blobs"), Options{fail: func(op, path string) error {
			count++
			ops = append(ops, op)
			if count == n {
				return errDisk
			}
			return nil
		}})
		w, err := b.Create(t.Context(), 5)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, "hello")
		count, ops = -1, nil
		err = errors.Join(w.Sync(), w.Commit())
		if count < n {
			if err != nil {
				t.Fatalf("without a failure: %v", err)
			}
			if n < 3 {
				t.Fatalf("only %d syncs in a commit: %q", count+1, ops)
			}
			return // every sync point has had its turn
		}
		if !errors.Is(err, errDisk) {
			t.Errorf("sync %d failed and Commit said %v", n, err)
		}
		if _, err := b.Open(t.Context(), w.Key()); err == nil {
			t.Errorf("sync %d failed and the blob can be read", n)
		}
		if _, err := b.Create(t.Context(), 1); !errors.Is(err, store.ErrPoisoned) {
			t.Errorf("sync %d failed and Create said %v", n, err)
		}
		w.Close()
	}
	t.Fatal("more sync points than the test knows of")
}

// Pieces that go past the page cache and others, in any order and size, cut
// and resumed in between, are what they were.
func TestPiecesOfAllSizes(t *testing.T) {
	b := open(t, filepath.Join(t.TempDir(), "blobs"), Options{flushAfter: 1 << 20})
	rng := rand.New(rand.NewPCG(1, 2))
	piece := make([]byte, 2<<20)
	rand.NewChaCha8([32]byte{3}).Read(piece)
	var want []byte
	w, err := b.Create(t.Context(), -1)
	if err != nil {
		t.Fatal(err)
	}
	direct := 0
	for i := range 60 {
		p := piece[rng.IntN(3)*directUnit:]
		switch i % 5 {
		case 0: // aligned in memory, if not in the file
			p = p[:directPiece+rng.IntN(4)*directUnit]
		case 1:
			p = p[:directPiece+rng.IntN(directPiece)]
		case 2:
			p = p[1+rng.IntN(100) : 5000+rng.IntN(directPiece)]
		case 3: // makes the next one aligned
			p = p[:directUnit-len(want)%directUnit]
		case 4:
			p = p[:1<<20]
		}
		if n, err := w.Write(p); err != nil || n != len(p) {
			t.Fatalf("writing %d bytes at %d: %d, %v", len(p), len(want), n, err)
		}
		want = append(want, p...)
		if w.(*writer).direct != nil {
			direct++
		}
		switch i {
		case 20, 40:
			want = want[:len(want)-rng.IntN(directPiece)]
			if err := w.Truncate(int64(len(want))); err != nil {
				t.Fatal(err)
			}
		case 30:
			if err := errors.Join(w.Sync(), w.Close()); err != nil {
				t.Fatal(err)
			}
			if w, err = b.Resume(t.Context(), w.Key()); err != nil || w.Size() != int64(len(want)) {
				t.Fatalf("resumed at %d of %d: %v", w.Size(), len(want), err)
			}
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	r, err := b.Open(t.Context(), w.Key())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes came back of %d, or others: %v", len(got), len(want), err)
	}
	if direct == 0 && !w.(*writer).buffered {
		t.Error("nothing was written past the page cache")
	}
}

func TestPromises(t *testing.T) {
	space := store.NewSpaceFunc(100, func() (int64, error) { return 1000, nil })
	if err := space.Promise(600); err != nil {
		t.Fatal(err)
	}
	if err := space.Promise(600); !errors.Is(err, store.ErrNoSpace) {
		t.Fatalf("two uploads were promised more than there is: %v", err)
	}
	space.Release(600)
	if err := space.Promise(600); err != nil {
		t.Fatal(err)
	}
}

// A real full disk: writes are refused, the blobs stay usable, and work again
// when there is space.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=16m"); err != nil {
		t.Skipf("mounting a tmpfs needs root: %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	space, err := store.NewSpace(dir, 4<<20)
	if err != nil {
		t.Fatal(err)
	}
	b := open(t, filepath.Join(dir, "blobs"), Options{Space: space})
	if _, err := b.Create(t.Context(), 1<<30); !errors.Is(err, store.ErrNoSpace) {
		t.Fatalf("an upload larger than the disk was accepted: %v", err)
	}
	var keys []store.Key
	for {
		w, err := b.Create(t.Context(), 1<<20)
		if err != nil {
			if !errors.Is(err, store.ErrNoSpace) {
				t.Fatal(err)
			}
			break
		}
		if _, err := io.WriteString(w, strings.Repeat("x", 1<<20)); err != nil {
			t.Fatal(err)
		}
		if err := w.Commit(); err != nil {
			t.Fatal(err)
		}
		keys = append(keys, w.Key())
		if len(keys) > 16 {
			t.Fatal("the disk never fills")
		}
	}
	if err := b.Ready(); err != nil {
		t.Logf("ready: %v", err)
	}
	for _, k := range keys {
		if r, err := b.Open(t.Context(), k); err != nil {
			t.Fatalf("reading on a full disk: %v", err)
		} else {
			r.Close()
		}
	}
	if err := b.Remove(t.Context(), keys[0]); err != nil {
		t.Fatal(err)
	}
	if w, err := b.Create(t.Context(), 512<<10); err != nil {
		t.Fatalf("there is space again: %v", err)
	} else {
		w.Close()
	}
}

func BenchmarkCommit1MiB(b *testing.B) {
	blobs := open(b, filepath.Join(b.TempDir(), "blobs"), Options{})
	data := strings.Repeat("x", 1<<20)
	b.SetBytes(1 << 20)
	for b.Loop() {
		w, err := blobs.Create(b.Context(), 1<<20)
		if err != nil {
			b.Fatal(err)
		}
		io.WriteString(w, data)
		if err := w.Commit(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkWriteSync1MiB is the limit of BenchmarkCommit1MiB: the same bytes
// to a plain file, synced.
func BenchmarkWriteSync1MiB(b *testing.B) {
	dir, data := b.TempDir(), strings.Repeat("x", 1<<20)
	b.SetBytes(1 << 20)
	for i := 0; b.Loop(); i++ {
		f, err := os.Create(filepath.Join(dir, fmt.Sprint(i)))
		if err != nil {
			b.Fatal(err)
		}
		f.WriteString(data)
		if err := f.Sync(); err != nil {
			b.Fatal(err)
		}
		f.Close()
	}
}
