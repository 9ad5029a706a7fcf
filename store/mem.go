package store

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/tidwall/btree"
)

// A MemDB is a [DB] in memory that polices the contract: it runs every update
// function twice and fails if the results differ, refuses a Reader that
// outlived its View, shares no memory with its callers, and can be told to
// fail. It is meant for tests.
type MemDB struct {
	mu       sync.Mutex                 // guards all below
	rows     *btree.Map[string, []byte] // copies of it are snapshots, and cost nothing
	poisoned bool
	closed   bool
	fault    Fault
	updates  int
}

// A Fault is a failure to inject into the next update.
type Fault int

const (
	NoFault     Fault = iota
	FailLost          // the update fails and nothing was written
	FailPersist       // the update fails although everything was written
	FailNoSpace       // the update is refused for lack of space
)

// NewMemDB returns an empty MemDB.
func NewMemDB() *MemDB { return &MemDB{rows: new(btree.Map[string, []byte])} }

// Inject makes the next update that writes something fail in the given way.
func (db *MemDB) Inject(f Fault) {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.fault = f
}

// Updates is the number of updates that wrote something.
func (db *MemDB) Updates() int {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.updates
}

// Reopen returns a DB that holds what is durable in db, as a new process
// would find it. db must not be used any more.
func (db *MemDB) Reopen() *MemDB {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.closed = true
	return &MemDB{rows: db.rows.Copy()}
}

// Rows returns a copy of everything that is stored.
func (db *MemDB) Rows() map[string]string {
	db.mu.Lock()
	defer db.mu.Unlock()
	m := make(map[string]string, db.rows.Len())
	db.rows.Scan(func(k string, v []byte) bool {
		m[k] = string(v)
		return true
	})
	return m
}

// SetRow changes a row behind the back of whoever uses the DB; a nil value
// deletes it. It is for tests of checkers.
func (db *MemDB) SetRow(key string, value []byte) {
	db.mu.Lock()
	defer db.mu.Unlock()
	if value == nil {
		db.rows.Delete(key)
		return
	}
	db.rows.Set(key, bytes.Clone(value))
}

func (db *MemDB) state() (*memReader, error) {
	if db.closed {
		return nil, errors.New("store: DB is closed")
	}
	if db.poisoned {
		return nil, ErrPoisoned
	}
	return &memReader{rows: db.rows.Copy()}, nil
}

// View implements [DB].
func (db *MemDB) View(ctx context.Context, fn func(Reader) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	db.mu.Lock()
	r, err := db.state()
	db.mu.Unlock()
	if err != nil {
		return err
	}
	defer func() { r.done = true }()
	return fn(r)
}

// Update implements [DB].
func (db *MemDB) Update(ctx context.Context, fn func(Reader) (Batch, error)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	r, err := db.state()
	if err != nil {
		return err
	}
	defer func() { r.done = true }()
	first, err := fn(r)
	if err != nil {
		return err
	}
	again, err := fn(r)
	if err != nil {
		return fmt.Errorf("store: update function failed when it was run again, so it is not pure: %w", err)
	}
	if !sameWrites(first, again) {
		return errors.New("store: update function wrote something else when it was run again, so it is not pure")
	}
	if first.Len() == 0 {
		return nil
	}
	if err := db.Limits().Check(first); err != nil {
		return err
	}
	fault := db.fault
	db.fault = NoFault
	switch fault {
	case FailNoSpace:
		return ErrNoSpace
	case FailLost:
		db.poisoned = true
		return errors.New("store: injected failure, nothing persisted")
	}
	for _, w := range first.Writes() {
		if w.Delete {
			db.rows.Delete(string(w.Key))
		} else {
			db.rows.Set(string(w.Key), bytes.Clone(w.Value))
		}
	}
	db.updates++
	if fault == FailPersist {
		db.poisoned = true
		return errors.New("store: injected failure, everything persisted")
	}
	return nil
}

func sameWrites(a, b Batch) bool {
	return slices.EqualFunc(a.Writes(), b.Writes(), func(x, y Write) bool {
		return bytes.Equal(x.Key, y.Key) && bytes.Equal(x.Value, y.Value) && x.Delete == y.Delete
	})
}

// Limits implements [DB].
func (db *MemDB) Limits() Limits {
	return Limits{BatchBytes: 8 << 20, BatchRows: 50_000, KeyBytes: 16 << 10, ValueBytes: 256 << 10}
}

// Close implements [DB].
func (db *MemDB) Close() error {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.closed = true
	return nil
}

type memReader struct {
	rows *btree.Map[string, []byte]
	done bool
}

var errReaderDone = errors.New("store: Reader used after its View or Update returned")

func (r *memReader) Get(key []byte) ([]byte, error) {
	if r.done {
		return nil, errReaderDone
	}
	v, ok := r.rows.Get(string(key))
	if !ok {
		return nil, ErrNotFound
	}
	return bytes.Clone(v), nil
}

func (r *memReader) Scan(rg Range) iter.Seq2[Row, error] {
	return func(yield func(Row, error) bool) {
		give := func(k string, v []byte) bool {
			if r.done {
				yield(Row{}, errReaderDone)
				return false
			}
			row := Row{Key: []byte(k)}
			if !rg.KeysOnly {
				row.Value = bytes.Clone(v)
			}
			ok := yield(row, nil)
			// Whoever kept the slices sees garbage from here on.
			scribble(row.Key)
			scribble(row.Value)
			return ok
		}
		from, to := string(rg.From), string(rg.To)
		if !rg.Reverse {
			r.rows.Ascend(from, func(k string, v []byte) bool {
				return (rg.To == nil || k < to) && give(k, v)
			})
			return
		}
		down := func(k string, v []byte) bool {
			if rg.To != nil && k == to {
				return true // the bound itself is not in the range
			}
			return k >= from && give(k, v)
		}
		if rg.To == nil {
			r.rows.Reverse(down)
		} else {
			r.rows.Descend(to, down)
		}
	}
}

func scribble(b []byte) {
	for i := range b {
		b[i] = 0xdb
	}
}

// A MemBlobs is a [Blobs] in memory that polices the contract and keeps apart
// what is written and what is durable. It is meant for tests.
type MemBlobs struct {
	mu       sync.Mutex // guards all below
	blobs    map[Key]*memBlob
	removed  map[Key]bool
	poisoned bool
	full     bool
	failSync bool
	opens    int
	clock    func() time.Time
}

type memBlob struct {
	data      []byte
	durable   int // length of what a crash leaves; -1: not even the name
	committed bool
	writing   bool
	modified  time.Time
}

// NewMemBlobs returns an empty MemBlobs.
func NewMemBlobs() *MemBlobs {
	return &MemBlobs{blobs: map[Key]*memBlob{}, removed: map[Key]bool{}, clock: time.Now}
}

// SetClock makes blobs bear another time than the system's.
func (b *MemBlobs) SetClock(clock func() time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.clock = clock
}

// SetFull makes writes fail with ErrNoSpace, or succeed again.
func (b *MemBlobs) SetFull(full bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.full = full
}

// FailSync makes the next Sync or Commit fail, which poisons the Blobs.
func (b *MemBlobs) FailSync() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failSync = true
}

// Opens is the number of times a committed blob was opened.
func (b *MemBlobs) Opens() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.opens
}

// Crash returns Blobs that hold what was durable, as a new process would find
// them after a power cut. b must not be used any more.
func (b *MemBlobs) Crash() *MemBlobs {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.poisoned = true
	after := NewMemBlobs()
	after.clock = b.clock
	for k, m := range b.blobs {
		if m.durable >= 0 {
			after.blobs[k] = &memBlob{data: bytes.Clone(m.data[:m.durable]), durable: m.durable, committed: m.committed, modified: m.modified}
		}
	}
	return after
}

// Corrupt changes one byte of a blob behind everybody's back.
func (b *MemBlobs) Corrupt(key Key, offset int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.blobs[key].data[offset] ^= 1
}

// Keys returns the keys of everything that is stored, sorted.
func (b *MemBlobs) Keys() []Key {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Sorted(maps.Keys(b.blobs))
}

// NewKey returns 128 random bits as a Key.
func NewKey() Key {
	var raw [16]byte
	rand.Read(raw[:])
	return Key(fmt.Sprintf("%x", raw))
}

// Create implements [Blobs].
func (b *MemBlobs) Create(ctx context.Context, size int64) (BlobWriter, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := b.Ready(); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	m := &memBlob{durable: -1, writing: true, modified: b.clock()}
	key := NewKey()
	b.blobs[key] = m
	return &memWriter{b: b, key: key, m: m}, nil
}

// Resume implements [Blobs].
func (b *MemBlobs) Resume(ctx context.Context, key Key) (BlobWriter, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	m, ok := b.blobs[key]
	switch {
	case b.poisoned:
		return nil, ErrPoisoned
	case !ok:
		return nil, ErrNotFound
	case m.committed:
		return nil, ErrExists
	case m.writing:
		return nil, fmt.Errorf("store: blob %s has a writer already", key)
	}
	m.writing = true
	return &memWriter{b: b, key: key, m: m}, nil
}

// Open implements [Blobs].
func (b *MemBlobs) Open(ctx context.Context, key Key) (Blob, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	m, ok := b.blobs[key]
	if !ok || !m.committed {
		return nil, ErrNotFound
	}
	b.opens++
	return &memReadBlob{bytes.NewReader(m.data)}, nil
}

// Remove implements [Blobs].
func (b *MemBlobs) Remove(ctx context.Context, key Key) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.poisoned {
		return ErrPoisoned
	}
	if _, ok := b.blobs[key]; ok {
		b.removed[key] = true
	}
	delete(b.blobs, key)
	return nil
}

// List implements [Blobs].
func (b *MemBlobs) List(ctx context.Context) iter.Seq2[BlobInfo, error] {
	return func(yield func(BlobInfo, error) bool) {
		for _, key := range b.Keys() {
			b.mu.Lock()
			m, ok := b.blobs[key]
			var info BlobInfo
			if ok {
				info = BlobInfo{Key: key, Size: int64(len(m.data)), Committed: m.committed, Modified: m.modified}
			}
			b.mu.Unlock()
			if ok && !yield(info, nil) {
				return
			}
		}
	}
}

// Ready implements [Blobs].
func (b *MemBlobs) Ready() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.poisoned:
		return ErrPoisoned
	case b.full:
		return ErrNoSpace
	}
	return nil
}

// Close implements [Blobs].
func (b *MemBlobs) Close() error { return nil }

type memReadBlob struct{ *bytes.Reader }

func (memReadBlob) Close() error { return nil }

type memWriter struct {
	b      *MemBlobs
	key    Key
	m      *memBlob
	closed bool
}

func (w *memWriter) Key() Key { return w.key }

func (w *memWriter) Size() int64 {
	w.b.mu.Lock()
	defer w.b.mu.Unlock()
	return int64(len(w.m.data))
}

func (w *memWriter) check() error {
	switch {
	case w.closed:
		return errors.New("store: BlobWriter used after it was closed")
	case w.b.poisoned:
		return ErrPoisoned
	case w.m.committed:
		return errors.New("store: a committed blob was written")
	}
	return nil
}

func (w *memWriter) Write(p []byte) (int, error) {
	w.b.mu.Lock()
	defer w.b.mu.Unlock()
	if err := w.check(); err != nil {
		return 0, err
	}
	if w.b.full {
		return 0, ErrNoSpace
	}
	w.m.data = append(w.m.data, p...)
	w.m.modified = w.b.clock()
	return len(p), nil
}

func (w *memWriter) ReadAt(p []byte, off int64) (int, error) {
	w.b.mu.Lock()
	defer w.b.mu.Unlock()
	return bytes.NewReader(w.m.data).ReadAt(p, off)
}

func (w *memWriter) Truncate(offset int64) error {
	w.b.mu.Lock()
	defer w.b.mu.Unlock()
	if err := w.check(); err != nil {
		return err
	}
	if offset < 0 || offset > int64(len(w.m.data)) {
		return fmt.Errorf("store: truncating %d bytes to %d", len(w.m.data), offset)
	}
	w.m.data = w.m.data[:offset]
	w.m.durable = min(w.m.durable, int(offset))
	return nil
}

func (w *memWriter) Sync() error {
	w.b.mu.Lock()
	defer w.b.mu.Unlock()
	return w.sync()
}

func (w *memWriter) sync() error {
	if err := w.check(); err != nil {
		return err
	}
	if w.b.failSync {
		w.b.failSync, w.b.poisoned = false, true
		return errors.New("store: injected failure of a sync")
	}
	w.m.durable = len(w.m.data)
	return nil
}

func (w *memWriter) Commit() error {
	w.b.mu.Lock()
	defer w.b.mu.Unlock()
	if err := w.sync(); err != nil {
		return err
	}
	w.m.committed, w.m.writing, w.closed = true, false, true
	return nil
}

func (w *memWriter) Close() error {
	w.b.mu.Lock()
	defer w.b.mu.Unlock()
	w.closed, w.m.writing = true, false
	return nil
}
