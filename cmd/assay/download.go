package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/assay-dev/assay/store"
	"github.com/assay-dev/assay/verify/attest"
)

const (
	// pullConnections is how many pieces are fetched at once, of all files.
	pullConnections = 8

	// pieceTries is how often a piece is fetched that is not what its list
	// says, before it is taken for damaged.
	pieceTries = 2
)

// A download is a blob being fetched into a file.
type download struct {
	*link
	desc  ocispec.Descriptor
	name  string // for people
	file  *os.File
	list  *attest.Pieces // nil if there is none
	slots *slots
	bar   *progress

	direct *os.File // the file with O_DIRECT; nil if that cannot be

	fetched atomic.Int64 // bytes that came over the link

	mu       sync.Mutex
	disputed []int // pieces that are not what the list says; guarded by mu
}

// slots are what pulling may use at once: a buffer for each connection.
type slots struct{ free chan []byte }

func newSlots(n int) *slots {
	s := &slots{make(chan []byte, n)}
	for range n {
		s.free <- nil
	}
	return s
}

func (s *slots) take(ctx context.Context) ([]byte, error) {
	select {
	case buf := <-s.free:
		if buf == nil {
			buf = store.NewBuffer(copyBuffer)
		}
		return buf, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s *slots) give(buf []byte) { s.free <- buf }

// copyBuffer is how much is read, checked and written at a time: what one
// step leaves in the processor's cache the next one finds there.
const copyBuffer = 1 << 20

// run fetches what the file lacks. When it returns nil the file is the blob.
func (d *download) run(ctx context.Context) error {
	ctx = auth.AppendRepositoryScope(ctx, d.repo.Reference, auth.ActionPull)
	if d.list == nil {
		return d.sequential(ctx)
	}
	// The file has its size and its place from the beginning, so that pieces
	// can be written beside each other; where nothing was written is a hole.
	if err := d.file.Truncate(d.desc.Size); err != nil {
		return err
	}
	unix.Fallocate(int(d.file.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, d.desc.Size) // if the file system can
	group, each := errgroup.WithContext(ctx)
	for i := range d.list.Count() {
		buf, err := d.slots.take(each)
		if err != nil {
			break
		}
		group.Go(func() error {
			defer d.slots.give(buf)
			return d.piece(each, i, buf)
		})
	}
	err := group.Wait()
	switch {
	case errors.Is(err, errNoRanges):
		return d.sequential(ctx)
	case err != nil:
		return err
	case len(d.disputed) > 0:
		return d.settle()
	}
	// Each piece was right after the one before it, and the last one ends in
	// the digest: this was the hashing of the whole.
	return nil
}

// piece sees to it that one piece is in the file.
func (d *download) piece(ctx context.Context, i int, buf []byte) error {
	offset, n := d.list.Range(i)
	if d.mayHave(offset, n) {
		check, err := d.list.Piece(i)
		if err != nil {
			return err
		}
		if _, err := io.CopyBuffer(check, onlyReader{io.NewSectionReader(d.file, offset, n)}, buf); err != nil {
			return err
		}
		if right, err := check.Right(); err != nil || right {
			d.bar.Add(n)
			return err
		}
	}
	for try := 1; ; try++ {
		check, err := d.list.Piece(i)
		if err != nil {
			return err
		}
		var done int64
		if err := persist(ctx, func() (int64, error) {
			m, err := d.fetch(ctx, offset+done, n-done, check, buf)
			done += m
			return m, err
		}); err != nil {
			return err
		}
		if right, err := check.Right(); err != nil || right {
			return err
		}
		if try == pieceTries {
			d.mu.Lock()
			d.disputed = append(d.disputed, i)
			d.mu.Unlock()
			return nil
		}
		d.bar.Add(-n)
	}
}

// onlyReader hides everything but Read, so that the buffer is used.
type onlyReader struct{ io.Reader }

// fetch writes a part of the blob to its place in the file and to check, and
// returns how much of it came.
func (d *download) fetch(ctx context.Context, offset, n int64, check io.Writer, buf []byte) (done int64, err error) {
	body, err := d.open(ctx, d.desc, offset, n)
	if err != nil {
		return 0, err
	}
	defer body.Close()
	for done < n {
		m, err := io.ReadFull(body, buf[:min(int64(len(buf)), n-done)])
		d.fetched.Add(int64(m))
		check.Write(buf[:m])
		if e := d.writeAt(buf[:m], offset+done); e != nil {
			return done, e
		}
		done += int64(m)
		d.bar.Add(int64(m))
		if err != nil {
			return done, fmt.Errorf("the link broke %d bytes into a part of %s: %w", done, d.name, err)
		}
	}
	return done, nil
}

// writeAt writes whole units past the page cache, where several writers of one
// file do not wait for each other, and what is left over as usual.
func (d *download) writeAt(data []byte, offset int64) error {
	const unit = 4096
	if whole := len(data) &^ (unit - 1); d.direct != nil && whole > 0 && offset%unit == 0 {
		n, err := d.direct.WriteAt(data[:whole], offset)
		if err != nil && !errors.Is(err, unix.EINVAL) {
			return err
		}
		data, offset = data[n:], offset+int64(n)
	}
	_, err := d.file.WriteAt(data, offset)
	return err
}

// mayHave reports whether the file has bytes in a range, and not only a hole:
// what was not fetched yet need not be hashed.
func (d *download) mayHave(offset, n int64) bool {
	raw, err := d.file.SyscallConn()
	if err != nil {
		return true
	}
	has := true
	raw.Control(func(fd uintptr) {
		data, err := unix.Seek(int(fd), offset, unix.SEEK_DATA)
		has = err == nil && data < offset+n || err != nil && !errors.Is(err, unix.ENXIO)
	})
	return has
}

// settle decides about pieces that are not what the list says: if the whole
// has its digest the list is wrong, else they are damaged.
func (d *download) settle() error {
	digester := d.desc.Digest.Algorithm().Digester()
	if _, err := io.CopyBuffer(digester.Hash(), onlyReader{io.NewSectionReader(d.file, 0, d.desc.Size)}, make([]byte, 1<<20)); err != nil {
		return err
	}
	if digester.Digest() == d.desc.Digest {
		return nil
	}
	var where []string
	for _, i := range d.disputed {
		offset, n := d.list.Range(i)
		where = append(where, fmt.Sprintf("%d-%d", offset, offset+n-1))
	}
	return remedy(fmt.Errorf("%s: bytes %s are damaged at the registry: %d times they came, and are not what %s has there",
		d.name, strings.Join(where, ", "), pieceTries, d.desc.Digest),
		"have the registry checked ('assay scrub') and push the file again, under any tag; what was right is kept, and the next pull fetches only these")
}

// sequential fetches the blob from where the file ends.
func (d *download) sequential(ctx context.Context) error {
	buf, err := d.slots.take(ctx)
	if err != nil {
		return err
	}
	defer d.slots.give(buf)
	info, err := d.file.Stat()
	if err != nil {
		return err
	}
	at := min(info.Size(), d.desc.Size)
	h := d.desc.Digest.Algorithm().Hash()
	restart := func() {
		d.bar.Add(-at)
		h.Reset()
		at = 0
	}
	if at > 0 {
		if _, err := io.CopyBuffer(h, onlyReader{io.NewSectionReader(d.file, 0, at)}, buf); err != nil {
			return err
		}
		d.bar.Add(at)
	}
	resumed := at > 0
	for {
		err := persist(ctx, func() (int64, error) {
			if at == d.desc.Size {
				return 0, nil
			}
			n, err := d.fetch(ctx, at, d.desc.Size-at, h, buf)
			at += n
			if errors.Is(err, errNoRanges) && at > 0 {
				restart()
				n, err = d.fetch(ctx, 0, d.desc.Size, h, buf)
				at = n
			}
			return n, err
		})
		if err != nil {
			return err
		}
		if got := digest.NewDigest(d.desc.Digest.Algorithm(), h); got != d.desc.Digest {
			if resumed {
				// What lay there was something else.
				resumed = false
				restart()
				continue
			}
			if err := d.file.Truncate(0); err != nil {
				return err
			}
			return fmt.Errorf("%s: what arrived is not %s but %s", d.name, d.desc.Digest, got)
		}
		return d.file.Truncate(d.desc.Size)
	}
}
