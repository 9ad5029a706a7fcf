package main

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/assay-dev/assay/store"
)

// The receiver is a bare program that does what no registry can do without when
// it is pushed to: it receives bytes, hashes them and, if it is told to, writes
// them past the page cache and syncs them. It is a process of its own, as the
// registries are. A connection brings the length (8 bytes, little-endian) and
// the bytes, and gets one byte when they are dealt with.
//
// It does what was found to be quickest: it hashes what it has received while it
// receives more, writes larger pieces, hashed or not, and syncs them while it
// writes more, one connection at a time.
const (
	hashPiece  = 1 * mib
	writePiece = 4 * mib
	syncPiece  = 16 * mib
)

// receiveVariable makes this program the receiver: where it writes its address.
// Files are written into the folder of that if receiveWrites is set.
const (
	receiveVariable = "ASSAY_BENCH_RECEIVE"
	receiveWrites   = "ASSAY_BENCH_RECEIVE_WRITES"
)

// receive is that program.
func receive(addr string) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	if err := os.WriteFile(addr, []byte(l.Addr().String()), 0o644); err != nil {
		return err
	}
	write := os.Getenv(receiveWrites) != ""
	for i := 0; ; i++ {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			path := ""
			if write {
				path = received(addr, i)
			}
			if err := take(c, path); err != nil {
				fmt.Fprintln(os.Stderr, "receiver:", err)
				return
			}
			c.Write([]byte{1})
		}()
	}
}

// received is the file of the connection that came as number i.
func received(addr string, i int) string { return fmt.Sprint(addr, "-", i) }

// take does it for one connection; path is the file, "" for none.
func take(c net.Conn, path string) error {
	var length [8]byte
	if _, err := io.ReadFull(c, length[:]); err != nil {
		return err
	}
	size := int64(binary.LittleEndian.Uint64(length[:]))
	w := io.WriteCloser(discarding{})
	if path != "" {
		f, err := createDirect(path, size)
		if err != nil {
			return err
		}
		w = newSyncing(f)
	}
	const buffers = 6
	var hashed, written errgroup.Group
	free := make(chan []byte, buffers)
	toHash := make(chan part, buffers*writePiece/hashPiece)
	toWrite := make(chan part, buffers)
	for range buffers {
		free <- store.NewBuffer(writePiece)
	}
	hashed.Go(func() error {
		h := sha256.New()
		for p := range toHash {
			h.Write(p.data)
			close(p.hashed)
		}
		return nil
	})
	written.Go(func() (failed error) {
		for p := range toWrite {
			if failed == nil {
				_, failed = w.Write(p.data)
			}
			<-p.hashed
			free <- p.data[:writePiece]
		}
		return errors.Join(failed, w.Close())
	})
	var broken error
	for size > 0 && broken == nil {
		buf, n := (<-free)[:min(writePiece, size)], 0
		var p part
		for n < len(buf) && broken == nil {
			var m int
			m, broken = io.ReadFull(c, buf[n:min(n+hashPiece, len(buf))])
			p = part{buf[n : n+m], make(chan struct{})}
			toHash <- p
			n += m
		}
		size -= int64(n)
		toWrite <- part{buf[:n], p.hashed}
	}
	close(toHash)
	close(toWrite)
	return errors.Join(broken, hashed.Wait(), written.Wait())
}

// part is bytes that were received; hashed is closed when they are hashed.
type part struct {
	data   []byte
	hashed chan struct{}
}

// discarding is a file that is not written.
type discarding struct{}

func (discarding) Write(p []byte) (int, error) { return len(p), nil }
func (discarding) Close() error                { return nil }

// syncing is a file that is synced behind what is written; its Close syncs the
// rest.
type syncing struct {
	*os.File
	written int            // since a sync was due
	behind  errgroup.Group // of one sync
}

// syncs take turns, but for those at the end.
var turn sync.Mutex

func newSyncing(f *os.File) *syncing {
	s := &syncing{File: f}
	s.behind.SetLimit(1)
	return s
}

func (f *syncing) Write(p []byte) (int, error) {
	n, err := f.File.Write(p)
	if f.written += n; f.written >= syncPiece && f.behind.TryGo(f.syncInTurn) {
		f.written = 0
	}
	return n, err
}

func (f *syncing) syncInTurn() error {
	turn.Lock()
	defer turn.Unlock()
	return f.Sync()
}

func (f *syncing) Close() error { return errors.Join(f.behind.Wait(), f.Sync(), f.File.Close()) }

// receiving is the time, and the receiver's processor time, for payloads that
// come at once. write has them written.
func (b *bench) receiving(write bool, payloads ...*payload) (took, cpu time.Duration, err error) {
	addr := filepath.Join(b.dir, "receiver")
	self, err := os.Executable()
	if err != nil {
		return 0, 0, err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), receiveVariable+"="+addr)
	if write {
		cmd.Env = append(cmd.Env, receiveWrites+"=1")
	}
	p, err := b.startOwn("receiver", addr, cmd)
	if err != nil {
		return 0, 0, err
	}
	defer func() {
		p.discard()
		for i := range payloads {
			os.Remove(received(addr, i))
		}
	}()
	conns := make([]*net.TCPConn, len(payloads))
	for i := range conns {
		w, err := dial(p.host)
		if err != nil {
			return 0, 0, err
		}
		defer w.close()
		conns[i] = w.conn
	}
	settle()
	before, err := p.cpu()
	if err != nil {
		return 0, 0, err
	}
	start := time.Now()
	var group errgroup.Group
	for i, c := range conns {
		group.Go(func() error {
			var length [8]byte
			binary.LittleEndian.PutUint64(length[:], uint64(payloads[i].size))
			if _, err := c.Write(length[:]); err != nil {
				return err
			}
			if err := payloads[i].send(c); err != nil {
				return err
			}
			if _, err := io.ReadFull(c, length[:1]); err != nil {
				return fmt.Errorf("the receiver failed: %w\n%s", err, p.log.Bytes())
			}
			return nil
		})
	}
	err = group.Wait()
	took = time.Since(start)
	after, e := p.cpu()
	return took, after - before, errors.Join(err, e)
}

// startOwn starts this program as another one, which writes its address to a
// file.
func (b *bench) startOwn(name, addr string, cmd *exec.Cmd) (*process, error) {
	os.Remove(addr)
	p := &process{name: name, data: addr}
	if err := p.start(cmd); err != nil {
		return nil, err
	}
	for {
		if raw, err := os.ReadFile(addr); err == nil && len(raw) > 0 {
			p.host = string(raw)
			return p, nil
		}
		if err := p.wait(b); err != nil {
			return nil, err
		}
	}
}
