package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/assay-dev/assay/store"
)

// unit is the random part of which payloads are repetitions.
const unit = 256 * mib

// A payload is content of a size, without end: a file in the page cache, as a
// client has it. Written in one go it lies there in large pieces, where the file
// system can do that. Scattered in pages of 4 KiB, as in a memfd, the same bytes
// took 0.7 to 1.6 instead of 0.63 s/GiB to hash, and more from minute to minute.
type payload struct {
	content
	digest string
	file   *os.File // of one unit, shared by all payloads
	data   []byte   // the same, mapped
}

// content says what a payload is.
type content struct {
	size int64
	at   int64 // where in the unit it begins
}

// piece is the MiB that begins at n, a multiple of that, or what is left there.
func (p *payload) piece(n int64) []byte {
	return p.data[(p.at+n)%unit:][:min(mib, p.size-n)]
}

// payload makes content of a size.
func (b *bench) payload(size int64) (*payload, error) { return b.payloadFrom(size, 0) }

// distinct makes some contents of a size of which no two are the same.
func (b *bench) distinct(n int, size int64) ([]*payload, error) {
	var all []*payload
	for i := range n {
		p, err := b.payloadFrom(size, int64(i)*mib)
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, nil
}

// payloadFrom makes the content of a size that begins somewhere in the unit, at
// a multiple of a MiB.
func (b *bench) payloadFrom(size, at int64) (*payload, error) {
	is := content{size, at}
	if p := b.payloads[is]; p != nil {
		return p, nil
	}
	p := &payload{content: is}
	if base := b.payloads[content{}]; base == nil {
		var err error
		if p.file, err = os.Create(filepath.Join(b.dir, "payload")); err != nil {
			return nil, err
		}
		data := make([]byte, unit)
		rand.NewChaCha8([32]byte{1}).Read(data)
		if _, err := p.file.Write(data); err != nil {
			return nil, err
		}
		if err := p.file.Sync(); err != nil {
			return nil, err
		}
		if p.data, err = unix.Mmap(int(p.file.Fd()), 0, unit, unix.PROT_READ, unix.MAP_SHARED); err != nil {
			return nil, err
		}
		b.payloads[content{}] = p
		p = &payload{content: is, file: p.file, data: p.data}
	} else {
		p.file, p.data = base.file, base.data
	}
	h := sha256.New()
	for n := int64(0); n < size; n += mib {
		h.Write(p.piece(n))
	}
	p.digest = "sha256:" + hex.EncodeToString(h.Sum(nil))
	b.payloads[is] = p
	return p, nil
}

func (b *bench) closePayloads() {
	if p := b.payloads[content{}]; p != nil {
		unix.Munmap(p.data)
		p.file.Close()
	}
}

// send sends the payload by sendfile, as 'assay push' and other clients do that
// give their connection the file: it takes the least of the cores that client
// and server share here.
func (p *payload) send(c *net.TCPConn) error {
	f, err := os.Open(p.file.Name()) // with a position of its own
	if err != nil {
		return err
	}
	defer f.Close()
	for n := int64(0); n < p.size; {
		from := (p.at + n) % unit
		if _, err := f.Seek(from, io.SeekStart); err != nil {
			return err
		}
		m, err := c.ReadFrom(&io.LimitedReader{R: f, N: min(unit-from, p.size-n)})
		if err != nil {
			return err
		}
		n += m
	}
	return nil
}

// writeFile writes the payload to a file, and syncs it.
func (p *payload) writeFile(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, p.size)
	for n := int64(0); n < p.size; n += mib {
		if _, err := f.Write(p.piece(n)); err != nil {
			return err
		}
	}
	return f.Sync()
}

// hashing is the limit of one stream: SHA-256 of the payload by one core, from
// memory, and nothing else. It returns the time and the processor time.
func (p *payload) hashing() (took, cpu time.Duration) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, start := threadCPU(), time.Now()
	h := sha256.New()
	for n := int64(0); n < p.size; n += mib {
		h.Write(p.piece(n))
	}
	h.Sum(nil)
	return time.Since(start), threadCPU() - before
}

// hashingAll is the limit of many streams: SHA-256 by all cores.
func (p *payload) hashingAll() time.Duration {
	start := time.Now()
	var wg sync.WaitGroup
	for range runtime.NumCPU() {
		wg.Go(func() { p.hashing() })
	}
	wg.Wait()
	return time.Since(start) / time.Duration(runtime.NumCPU())
}

// writing is the limit of the disk: payloads to new files at once, each
// sequentially, with one sync at its end. write is writeFile or writeDirect. The
// files are removed.
func writing(dir string, write func(*payload, string) error, payloads ...*payload) (time.Duration, error) {
	var paths []string
	for i := range payloads {
		paths = append(paths, filepath.Join(dir, fmt.Sprint("limit-", i)))
		defer os.Remove(paths[i])
	}
	settle()
	start := time.Now()
	var group errgroup.Group
	for i, p := range payloads {
		group.Go(func() error { return write(p, paths[i]) })
	}
	err := group.Wait()
	return time.Since(start), err
}

var writeBuffers = sync.Pool{New: func() any { return (*[writePiece]byte)(store.NewBuffer(writePiece)) }}

// writeDirect is writeFile past the page cache, in pieces of 4 MiB.
func (p *payload) writeDirect(path string) error {
	f, err := createDirect(path, p.size)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := writeBuffers.Get().(*[writePiece]byte)
	defer writeBuffers.Put(buf)
	copy(buf[:], p.data)
	for n := int64(0); n < p.size; n += writePiece {
		if _, err := f.Write(buf[:]); err != nil {
			return err
		}
	}
	return f.Sync()
}

// hashAndWrite hashes the payload from memory while writeDirect writes as much.
func (p *payload) hashAndWrite(path string) error {
	var both errgroup.Group
	both.Go(func() error { return p.writeDirect(path) })
	p.hashing()
	return both.Wait()
}

// createDirect makes a file of which the pages are not cached, with room for size
// bytes.
func createDirect(path string, size int64) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY|syscall.O_DIRECT, 0o600)
	if err == nil {
		unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, size)
	}
	return f, err
}

// settle lets the disk finish what an earlier measurement left in memory, so
// that nobody pays for what somebody else wrote.
func settle() { unix.Sync() }

func threadCPU() time.Duration {
	var t unix.Timespec
	unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t)
	return time.Duration(t.Nano())
}
