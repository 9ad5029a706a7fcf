// Package fs keeps blobs as files of a local file system.
//
// A blob is the file <dir>/<first two letters of its key>/<key>. It has its
// final name from the start; what says that it is complete is its mode: 0600
// while it is being written, 0400 once it is committed. So nothing is renamed
// or copied.
//
// The life of a blob:
//
//	openat(O_CREAT|O_EXCL, 0600)   Create
//	fallocate(KEEP_SIZE)           the disk is asked for the announced size
//	write …                        large pieces go past the page cache, and
//	                               an fdatasync runs behind them: what only
//	                               a cache has (the kernel's or the disk's)
//	                               stays bounded, and the last sync is short
//	fdatasync; fsync(directory)    Sync: bytes and name are durable
//	fchmod(0400); fsync            Commit: so is the mode
package fs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/assay-dev/assay/store"
)

const (
	writing   fs.FileMode = 0o600
	committed fs.FileMode = 0o400

	// flushAfter is how many bytes are written before they are synced while
	// more is written; when flushBound have come meanwhile, they wait for it.
	//
	// What goes past the page cache is in need of that too: a disk, and more so
	// a virtual one, takes bytes into a cache of its own, and only a sync
	// empties it (for a GiB, 0.2 s of writing and 0.6 s of syncing were seen).
	//
	// Such syncs take turns. Each empties the disk's cache of what all have
	// written, and what they write meanwhile waits: many at once, and soon one
	// after the other, take longer for the same bytes than fewer of more each.
	flushAfter = 16 << 20
	flushBound = 4 * flushAfter

	// Pieces of at least directPiece bytes that lie at multiples of directUnit
	// in memory and in the file are written with O_DIRECT. A blob of hundreds
	// of gigabytes would only push everything else out of the page cache, and
	// copying it there costs more than half of what hashing it does.
	directPiece = 256 << 10
	directUnit  = 4096

	// readAhead is the size from which it pays to say how a blob will be read.
	readAhead = 1 << 20
)

// Options configure Open. The zero value is usable.
type Options struct {
	// Space guards against a full disk. Without one nothing does.
	Space *store.Space

	// fail is called before each system call that makes something durable;
	// its error stands for the call's. For tests.
	fail func(op, path string) error

	// flushAfter is another one than that of the package. For tests.
	flushAfter int64
}

// Blobs is a [store.Blobs] over a directory.
type Blobs struct {
	dir  string
	opt  Options
	turn chan struct{} // has an element while a sync goes on behind what is written

	mu       sync.Mutex // guards the following
	poisoned error
	writers  map[store.Key]bool
}

var _ store.Blobs = (*Blobs)(nil)

// Open opens the blobs in dir, which is made if it is not there.
func Open(dir string, opt Options) (*Blobs, error) {
	if opt.fail == nil {
		opt.fail = func(string, string) error { return nil }
	}
	if opt.flushAfter == 0 {
		opt.flushAfter = flushAfter
	}
	b := &Blobs{dir: dir, opt: opt, turn: make(chan struct{}, 1), writers: map[store.Key]bool{}}
	// All directories are made, and made durable, before the first blob, so
	// that a new blob has one directory to sync.
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	for i := range 256 {
		err := os.Mkdir(filepath.Join(dir, fmt.Sprintf("%02x", i)), 0o700)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
	}
	if err := b.syncDir(dir); err != nil {
		return nil, err
	}
	return b, b.syncDir(filepath.Dir(dir))
}

func (b *Blobs) path(key store.Key) (string, error) {
	if len(key) != 32 || !isHex(string(key)) {
		return "", fmt.Errorf("%w: %q is no key of a blob", store.ErrNotFound, key)
	}
	return filepath.Join(b.dir, string(key[:2]), string(key)), nil
}

func isHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

func (b *Blobs) usable() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.poisoned != nil {
		return fmt.Errorf("%w (first error: %v)", store.ErrPoisoned, b.poisoned)
	}
	return nil
}

// poison remembers that a sync failed: "a subsequent fsync may report success
// although the data is lost" (fsync(2), and the LSFMM 2018 discussion).
func (b *Blobs) poison(err error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.poisoned == nil {
		b.poisoned = err
	}
	return err
}

// Ready implements [store.Blobs].
func (b *Blobs) Ready() error {
	if err := b.usable(); err != nil {
		return err
	}
	return b.opt.Space.Check(readyRoom)
}

// readyRoom is the room below which nothing more is accepted, rather than some
// small blobs and others not.
const readyRoom = 1 << 20

func (b *Blobs) begin(key store.Key) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.writers[key] {
		return fmt.Errorf("blob %s has a writer already", key)
	}
	b.writers[key] = true
	return nil
}

func (b *Blobs) end(key store.Key) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.writers, key)
}

// Create implements [store.Blobs].
func (b *Blobs) Create(ctx context.Context, size int64) (store.BlobWriter, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := b.Ready(); err != nil {
		return nil, err
	}
	if err := b.opt.Space.Promise(size); err != nil {
		return nil, err
	}
	w := &writer{b: b, key: store.NewKey(), promised: max(size, 0)}
	fail := func(err error) (store.BlobWriter, error) {
		b.opt.Space.Release(w.promised)
		return nil, err
	}
	path, err := b.path(w.key)
	if err != nil {
		return fail(err)
	}
	if w.f, err = os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, writing); err != nil {
		return fail(fmt.Errorf("creating a blob: %w", noSpace(err)))
	}
	if size > 0 {
		// Fewer extents, and a disk that is too full says so now. File
		// systems that cannot do it are as good without.
		err := unix.Fallocate(int(w.f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, size)
		if errors.Is(err, unix.ENOSPC) {
			w.f.Close()
			os.Remove(path)
			return fail(fmt.Errorf("reserving %d bytes: %w", size, store.ErrNoSpace))
		}
		if err == nil {
			b.opt.Space.Release(w.promised) // the file system keeps the promise now
			w.promised = 0
		}
	}
	return w, b.begin(w.key)
}

// Resume implements [store.Blobs].
func (b *Blobs) Resume(ctx context.Context, key store.Key) (store.BlobWriter, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := b.usable(); err != nil {
		return nil, err
	}
	path, err := b.path(key)
	if err != nil {
		return nil, err
	}
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, store.ErrNotFound
	case err != nil:
		return nil, err
	case info.Mode().Perm() == committed:
		return nil, store.ErrExists
	}
	if err := b.begin(key); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		b.end(key)
		return nil, err
	}
	return &writer{b: b, key: key, f: f, size: info.Size(), flushed: info.Size()}, nil
}

// Open implements [store.Blobs].
func (b *Blobs) Open(ctx context.Context, key store.Key) (store.Blob, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := b.usable(); err != nil {
		return nil, err
	}
	path, err := b.path(key)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, store.ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && info.Mode().Perm() != committed {
		err = store.ErrNotFound
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	if info.Size() >= readAhead {
		// From the beginning or from some place on, but one byte after the
		// other: the kernel may read further ahead.
		unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_SEQUENTIAL)
	}
	return &file{f, info.Size()}, nil
}

// Remove implements [store.Blobs]. The removal is not synced: a file that a
// power cut brings back has no row, and is removed again.
func (b *Blobs) Remove(ctx context.Context, key store.Key) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := b.usable(); err != nil {
		return err
	}
	path, err := b.path(key)
	if err != nil {
		return nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// List implements [store.Blobs].
func (b *Blobs) List(ctx context.Context) iter.Seq2[store.BlobInfo, error] {
	return func(yield func(store.BlobInfo, error) bool) {
		for i := range 256 {
			entries, err := os.ReadDir(filepath.Join(b.dir, fmt.Sprintf("%02x", i)))
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				yield(store.BlobInfo{}, err)
				return
			}
			for _, e := range entries {
				info, err := e.Info()
				if errors.Is(err, fs.ErrNotExist) {
					continue // removed since
				}
				if err != nil {
					yield(store.BlobInfo{}, err)
					return
				}
				if !yield(store.BlobInfo{
					Key: store.Key(e.Name()), Size: info.Size(),
					Committed: info.Mode().Perm() == committed, Modified: info.ModTime(),
				}, nil) {
					return
				}
			}
		}
	}
}

// Close implements [store.Blobs].
func (b *Blobs) Close() error { return nil }

func (b *Blobs) syncDir(dir string) error {
	if err := b.opt.fail("fsync", dir); err != nil {
		return err
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("syncing %s: %w", dir, err)
	}
	return nil
}

// file is a committed blob.
type file struct {
	osFile
	size int64
}

// osFile keeps the embedded field's name apart from the method File.
type osFile = *os.File

func (f *file) Size() int64    { return f.size }
func (f *file) File() *os.File { return f.osFile }

// noSpace makes ENOSPC an error that is store.ErrNoSpace.
func noSpace(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: %v", store.ErrNoSpace, err)
	}
	return err
}

type writer struct {
	b        *Blobs
	key      store.Key
	f        *os.File
	direct   *os.File // the same file with O_DIRECT; nil until it is needed
	buffered bool     // the file system has no O_DIRECT
	size     int64
	promised int64 // of the Space, not yet written

	flushed int64  // a sync of the bytes up to here has begun, or will
	flush   *flush // which that is; nil if none is on its way
	named   bool   // the directory was synced; the flush's while one is on its way
	closed  bool
}

// A flush is a sync behind what is written.
type flush struct {
	before  int64         // flushed before it
	dropped chan struct{} // closed when it need not begin any more
	done    chan struct{} // closed when it has ended, and begun is set
	begun   bool
}

func (w *writer) Key() store.Key { return w.key }
func (w *writer) Size() int64    { return w.size }

func (w *writer) Write(p []byte) (n int, err error) {
	if err := w.b.usable(); err != nil {
		return 0, err
	}
	if err := w.flushBehind(); err != nil {
		return 0, err
	}
	if w.aligned(p) {
		n, err = w.writeDirect(p)
	}
	if err == nil && n < len(p) {
		var more int
		more, err = w.f.WriteAt(p[n:], w.size+int64(n))
		n += more
	}
	w.size += int64(n)
	if done := min(w.promised, int64(n)); done > 0 {
		w.b.opt.Space.Release(done)
		w.promised -= done
	}
	return n, noSpace(err)
}

// flushBehind begins to sync what was written if that is enough, and waits for
// a sync that goes on already if too much has come meanwhile: what the disk
// cannot keep up with must not pile up.
func (w *writer) flushBehind() error {
	pending := w.size - w.flushed
	if pending < w.b.opt.flushAfter {
		return nil
	}
	if w.flush != nil {
		select {
		case <-w.flush.done:
		default:
			if pending < flushBound/flushAfter*w.b.opt.flushAfter {
				return nil
			}
			<-w.flush.done
		}
	}
	if err := w.b.opt.Space.Check(0); err != nil {
		return err
	}
	f := &flush{before: w.flushed, dropped: make(chan struct{}), done: make(chan struct{})}
	w.flushed, w.flush = w.size, f
	go w.syncBehind(f)
	return nil
}

// syncBehind is what a flush does when it is its turn.
func (w *writer) syncBehind(f *flush) {
	defer close(f.done)
	// It takes a free turn even if it was dropped before it came to run.
	select {
	case w.b.turn <- struct{}{}:
	default:
		select {
		case w.b.turn <- struct{}{}:
		case <-f.dropped:
			return
		}
	}
	defer func() { <-w.b.turn }()
	f.begun = true
	// If it fails, nothing of the store is believed any more, so the error
	// need not find its way to the next call by itself.
	if err := w.fdatasync(); err != nil {
		w.b.poison(err)
	} else if err := w.syncName(); err != nil { // which costs the less, the less is in the disk's cache
		w.b.poison(err)
	}
}

// flushing waits for the sync that goes on behind what is written. If it has
// not begun, it is not needed: the caller makes one, or drops the bytes.
func (w *writer) flushing() {
	if f := w.flush; f != nil {
		close(f.dropped)
		if <-f.done; !f.begun {
			w.flushed = f.before
		}
		w.flush = nil
	}
}

// aligned reports whether p may go past the page cache.
func (w *writer) aligned(p []byte) bool {
	return !w.buffered && len(p) >= directPiece && w.size%directUnit == 0 && uintptr(unsafe.Pointer(&p[0]))%directUnit == 0
}

// writeDirect writes the whole units of p past the page cache, or nothing if
// that cannot be done here. Bytes before them may lie in the page cache, in
// other units: the kernel keeps both in step (open(2), "O_DIRECT").
func (w *writer) writeDirect(p []byte) (int, error) {
	if w.direct == nil {
		f, err := os.OpenFile(w.f.Name(), os.O_WRONLY|unix.O_DIRECT, 0)
		if err != nil {
			w.buffered = true
			return 0, nil
		}
		w.direct = f
	}
	n, err := w.direct.WriteAt(p[:len(p)&^(directUnit-1)], w.size)
	if errors.Is(err, unix.EINVAL) && n == 0 {
		// Its unit is another one, or it only said that it could.
		w.buffered = true
		return 0, nil
	}
	return n, err
}

func (w *writer) ReadAt(p []byte, off int64) (int, error) { return w.f.ReadAt(p, off) }

func (w *writer) Truncate(offset int64) error {
	if offset < 0 || offset > w.size {
		return fmt.Errorf("truncating a blob of %d bytes to %d", w.size, offset)
	}
	w.flushing()
	if err := w.f.Truncate(offset); err != nil {
		return err
	}
	w.size, w.flushed = offset, min(w.flushed, offset)
	return nil
}

func (w *writer) Sync() error {
	w.flushing()
	if err := w.b.usable(); err != nil {
		return err
	}
	if err := w.fdatasync(); err != nil {
		return w.b.poison(err)
	}
	if err := w.syncName(); err != nil {
		return w.b.poison(err)
	}
	w.flushed = w.size
	return nil
}

// syncName makes the blob's entry in its directory durable.
func (w *writer) syncName() error {
	if w.named {
		return nil
	}
	err := w.b.syncDir(filepath.Dir(w.f.Name()))
	w.named = err == nil
	return err
}

func (w *writer) fdatasync() error {
	if err := w.b.opt.fail("fdatasync", w.f.Name()); err != nil {
		return err
	}
	if err := unix.Fdatasync(int(w.f.Fd())); err != nil {
		return fmt.Errorf("syncing blob %s: %w", w.key, err)
	}
	return nil
}

func (w *writer) Commit() error {
	if w.closed {
		return errors.New("the blob's writer is closed")
	}
	w.flushing()
	if err := w.b.usable(); err != nil {
		return err
	}
	// The size may have been announced larger than what came.
	if err := w.f.Truncate(w.size); err != nil {
		return err
	}
	if err := w.f.Chmod(committed); err != nil {
		return err
	}
	// One fsync makes the bytes and the mode durable: fdatasync would leave
	// out the mode.
	if err := w.b.opt.fail("fsync", w.f.Name()); err != nil {
		return w.b.poison(err)
	}
	if err := w.f.Sync(); err != nil {
		return w.b.poison(fmt.Errorf("syncing blob %s: %w", w.key, err))
	}
	if err := w.syncName(); err != nil {
		return w.b.poison(err)
	}
	return w.Close()
}

func (w *writer) Close() error {
	if w.closed {
		return nil
	}
	w.flushing() // with the file's descriptor
	w.closed = true
	w.b.opt.Space.Release(w.promised)
	w.promised = 0
	w.b.end(w.key)
	if w.direct != nil {
		w.direct.Close()
	}
	return w.f.Close()
}
