// Package store is the cellar of Assay: the two contracts everything above
// rests on, and a strict in-memory pair that polices them.
//
//   - [DB] keeps rows: ordered keys with small values, changed atomically.
//   - [Blobs] keeps bytes: files of any size under opaque keys.
//
// A row is the only name a blob has. Bytes are written first, under a key that
// is made when the writing starts and never used again; then one row is
// committed that points at them. So there is nothing to rename or to copy when
// an upload ends, on a disk or in an object store, and a crash at any moment
// leaves at worst bytes that no row names.
//
// The suite that every adapter must pass is in [github.com/assay-dev/assay/store/storetest].
package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"time"
)

var (
	// ErrNotFound says that no row has the key, or that no blob has it.
	ErrNotFound = errors.New("not found")

	// ErrNoSpace says that a write was refused because it would have taken
	// the disk below its reserve. Nothing was written. The adapter stays
	// usable for reads, and for writes once there is space again.
	ErrNoSpace = errors.New("no space left above the reserve")

	// ErrPoisoned says that an earlier commit or sync failed, so that what
	// reads show may not be durable. The adapter answers nothing else until
	// it is opened again. See https://wiki.postgresql.org/wiki/Fsync_Errors
	// for why a failed sync must not be tried again.
	ErrPoisoned = errors.New("storage failed to make a write durable; restart to recover what is durable")

	// ErrTooLarge says that a batch, a key or a value is over the [Limits].
	ErrTooLarge = errors.New("batch is over the limits of the storage engine")

	// ErrExists says that a blob was opened for writing after it was committed.
	ErrExists = errors.New("already committed")
)

// A DB is an ordered map from keys to values with atomic, durable updates.
//
// Keys are compared as bytes. All methods may be called concurrently. There
// is no delete-range and no expiry: nothing that is kept here is forgotten in
// bulk or by itself.
type DB interface {
	// View calls fn with a consistent snapshot: fn sees all of an update or
	// nothing of it. The Reader must not be used after fn returned.
	// View returns fn's error unchanged.
	View(ctx context.Context, fn func(Reader) error) error

	// Update calls fn with the newest state and writes the batch fn returns,
	// all or nothing, in isolation from every other Update (serializable).
	// When Update returns nil the batch is durable and every later View sees
	// it. When fn fails nothing is written and Update returns fn's error
	// unchanged. An empty batch writes nothing.
	//
	// fn may be called more than once, so it must have no effect outside its
	// result. It must not call the DB.
	//
	// Any other error than fn's, ErrNoSpace, ErrTooLarge and the context's
	// (which all mean: nothing was written) leaves the outcome unknown and
	// the DB poisoned: it answers ErrPoisoned from then on.
	Update(ctx context.Context, fn func(Reader) (Batch, error)) error

	// Limits are the engine's bounds for one batch. They do not change.
	Limits() Limits

	// Close waits for running calls and releases the engine. A DB that was
	// closed answers errors.
	Close() error
}

// A Reader reads one state of a [DB]. It may be used by one goroutine at a time.
type Reader interface {
	// Get returns the value of key, or an error that is ErrNotFound.
	// The slice belongs to the caller.
	Get(key []byte) ([]byte, error)

	// Scan yields the rows of r in order. An error is yielded once, as the
	// last pair, with a zero Row. The slices of a Row are valid until the
	// next one is asked for.
	Scan(r Range) iter.Seq2[Row, error]
}

// A Row is one key with its value.
type Row struct {
	Key, Value []byte
}

// A Range names the keys k with From <= k < To. A nil To has no upper bound.
type Range struct {
	From, To []byte

	// Reverse yields the greatest key first.
	Reverse bool

	// KeysOnly leaves Row.Value nil, which is cheaper.
	KeysOnly bool
}

// Prefix returns the range of all keys that begin with p.
func Prefix(p []byte) Range {
	to := append([]byte(nil), p...)
	for i := len(to) - 1; i >= 0; i-- {
		to[i]++
		if to[i] != 0 {
			return Range{From: p, To: to[:i+1]}
		}
	}
	return Range{From: p} // p is empty or all 0xff: no upper bound
}

// Limits bound what one batch may hold.
type Limits struct {
	BatchBytes int // sum of all keys and values
	BatchRows  int
	KeyBytes   int
	ValueBytes int
}

// A Batch is a list of writes that are applied in order, all or nothing.
// The zero Batch is empty and ready to use.
type Batch struct {
	writes []Write
	bytes  int
}

// A Write sets Key to Value, or deletes Key.
type Write struct {
	Key, Value []byte
	Delete     bool
}

// Set adds a write of value to key. The Batch keeps both slices.
func (b *Batch) Set(key, value []byte) {
	b.writes = append(b.writes, Write{Key: key, Value: value})
	b.bytes += len(key) + len(value)
}

// Delete adds the removal of key. Removing a key that is not there is no error.
func (b *Batch) Delete(key []byte) {
	b.writes = append(b.writes, Write{Key: key, Delete: true})
	b.bytes += len(key)
}

// Append adds all writes of other after those of b.
func (b *Batch) Append(other Batch) {
	b.writes = append(b.writes, other.writes...)
	b.bytes += other.bytes
}

// Writes returns the writes in order. The slice belongs to the Batch.
func (b *Batch) Writes() []Write { return b.writes }

// Len is the number of writes.
func (b *Batch) Len() int { return len(b.writes) }

// Bytes is the sum of the lengths of all keys and values.
func (b *Batch) Bytes() int { return b.bytes }

// A Key is the opaque name of a blob's bytes: made by [Blobs.Create], never
// used a second time, safe as a file name and as a path element of a URL.
type Key string

// Blobs keeps files of any size. A blob is written once, under a key that is
// its own for ever, and becomes readable by Commit.
//
// All methods may be called concurrently.
type Blobs interface {
	// Create starts a blob under a new key. size is the number of bytes that
	// are going to be written, or -1 if that is not known: a known size is
	// reserved, so that a disk too full for it answers ErrNoSpace now.
	Create(ctx context.Context, size int64) (BlobWriter, error)

	// Resume opens a blob that was started and not committed, by this
	// process or by one before it. Bytes after the last Sync may be there or
	// not. It returns ErrNotFound, or ErrExists for a committed blob.
	Resume(ctx context.Context, key Key) (BlobWriter, error)

	// Open returns the bytes of a committed blob, or ErrNotFound.
	Open(ctx context.Context, key Key) (Blob, error)

	// Remove deletes a blob, committed or not. Removing what is not there is
	// no error. Blobs that are open stay readable.
	Remove(ctx context.Context, key Key) error

	// List yields everything that is stored, committed or not, in no
	// particular order.
	List(ctx context.Context) iter.Seq2[BlobInfo, error]

	// Ready says whether a write may be tried: nil, ErrNoSpace or ErrPoisoned.
	Ready() error

	Close() error
}

// BlobInfo describes what is stored under a key.
type BlobInfo struct {
	Key       Key
	Size      int64
	Committed bool
	Modified  time.Time
}

// A BlobWriter writes one blob. It belongs to one goroutine.
type BlobWriter interface {
	// Key is the blob's name.
	Key() Key

	// Size is the number of bytes written so far.
	Size() int64

	// Write appends.
	io.Writer

	// ReadAt reads bytes that were written, for a hash that has to catch up.
	io.ReaderAt

	// Truncate drops all bytes from offset on.
	Truncate(offset int64) error

	// Sync returns when all bytes written so far, and the blob's name, are
	// durable.
	Sync() error

	// Commit syncs, makes the blob readable and closes the writer. When it
	// returns nil the bytes and their name are durable and will not change.
	Commit() error

	// Close releases the writer and keeps the bytes for Resume.
	// After Commit it does nothing.
	Close() error
}

// A Blob reads a committed blob. An adapter that keeps blobs as files returns
// a value for which [FileOf] finds the *os.File, so that a server can use
// sendfile.
type Blob interface {
	io.ReadSeekCloser
	io.ReaderAt
	Size() int64
}

// FileOf returns the open file behind b, if there is one: a [Blob] may have
// a method File() *os.File. The file's offset is the blob's own.
func FileOf(b Blob) (*os.File, bool) {
	if f, ok := b.(interface{ File() *os.File }); ok {
		return f.File(), true
	}
	return nil, false
}

// Check returns an error that is ErrTooLarge if b is over the limits.
func (l Limits) Check(b Batch) error {
	if b.Len() > l.BatchRows || b.Bytes() > l.BatchBytes {
		return fmt.Errorf("%w: %d rows and %d bytes, %d and %d are allowed", ErrTooLarge, b.Len(), b.Bytes(), l.BatchRows, l.BatchBytes)
	}
	for _, w := range b.Writes() {
		if len(w.Key) == 0 || len(w.Key) > l.KeyBytes || len(w.Value) > l.ValueBytes {
			return fmt.Errorf("%w: key of %d and value of %d bytes, %d and %d are allowed", ErrTooLarge, len(w.Key), len(w.Value), l.KeyBytes, l.ValueBytes)
		}
	}
	return nil
}
