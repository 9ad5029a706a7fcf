// Package badger keeps rows in an embedded Badger database.
//
// The life of an update: the caller's function runs over a snapshot, alone
// (one writer at a time, so there are no conflicts to retry); the disk is
// asked whether there is room; Badger appends the batch to its memtable's
// write-ahead log and calls msync; if a new log file was made, the directory
// is synced too, because Badger does not sync the entry of a new file; then
// Update returns. A power cut at any moment leaves all of the batch or nothing.
package badger

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"golang.org/x/sys/unix"

	"github.com/assay-dev/assay/store"
)

const (
	// A memtable is 64 MiB, or less on a disk that is small beside that.
	maxMemTable, minMemTable = 64 << 20, 8 << 20

	// maxValue is the largest value the adapter takes. It stays below
	// Badger's value threshold, so that every value lives in the LSM tree and
	// the value log stays empty: errors of syncing the value log are only
	// logged by Badger.
	maxValue       = 256 << 10
	valueThreshold = 1 << 20
)

// memTableSize is what suits a disk.
func memTableSize(disk int64) int64 { return min(max(disk/64, minMemTable), maxMemTable) }

// flushRoom is the room to keep free: for a memtable and its table, and the log
// file of the next memtable, which Badger maps at twice the memtable's size.
func (d *DB) flushRoom() int64 { return 4 * d.memTable }

// Options configure Open. The zero value is usable.
type Options struct {
	// Space guards against a full disk. Without one nothing does.
	Space *store.Space

	// Log takes Badger's messages. Without one only errors are returned.
	Log *slog.Logger
}

// DB is a [store.DB] over Badger.
type DB struct {
	db       *badger.DB
	dir      string
	space    *store.Space
	log      *slog.Logger
	memTable int64 // bytes

	writer sync.Mutex // held by the one running update

	mu       sync.RWMutex // guards the following
	poisoned error
	closed   bool

	dirTime time.Time // of the last sync of dir; guarded by writer
}

var _ store.DB = (*DB)(nil)

// Open opens the database in dir, which is made if it is not there. It returns
// an error that is [store.ErrNoSpace] if Badger would meet a full disk.
func Open(dir string, opt Options) (*DB, error) {
	log := opt.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	disk, err := store.DiskSize(dir)
	if err != nil {
		return nil, err
	}
	d := &DB{dir: dir, space: opt.Space, log: log, memTable: memTableSize(disk)}
	if err := d.roomToFlush(); err != nil {
		return nil, err
	}
	o := badger.DefaultOptions(dir).
		WithSyncWrites(true).
		WithMemTableSize(d.memTable).
		WithNumMemtables(2).
		WithValueThreshold(valueThreshold).
		WithValueLogFileSize(16 << 20).
		WithCompression(options.None).
		WithBlockCacheSize(0). // blocks are not compressed: the page cache holds them
		WithIndexCacheSize(32 << 20).
		WithNumCompactors(2).
		// Not OnTableAndBlockRead: that checks in goroutines of Badger's own,
		// where damage is a panic nobody can catch. Verify checks tables.
		WithChecksumVerificationMode(options.OnBlockRead).
		WithDetectConflicts(false). // there is one writer
		WithMetricsEnabled(false).
		WithLogger(logger{log})
	// Tables of 2 MiB on all levels, not larger ones further down: a compaction
	// builds a dozen of them at once, and holds up to four times the size for
	// each. With 16 MiB, which a million manifests came to, that was 580 MiB of
	// anonymous memory, and 300 with these. The price is 900 files instead of 300.
	o.TableSizeMultiplier = 1
	if err := removeEmptyLogs(dir); err != nil {
		return nil, err
	}
	d.db, err = badger.Open(o)
	if err != nil {
		if strings.Contains(err.Error(), "Cannot acquire directory lock") {
			return nil, fmt.Errorf("the database in %s is in use by another process; stop it first: %w", dir, err)
		}
		return nil, fmt.Errorf("opening the database in %s: %w", dir, err)
	}
	d.space.Keep(d.flushRoom())
	if err := d.syncDir(); err != nil {
		d.db.Close()
		return nil, err
	}
	return d, nil
}

// roomToFlush tells whether Badger can write to tables what its memtables hold,
// as it does when it is opened and closed: it dies when it cannot.
func (d *DB) roomToFlush() error {
	if d.space == nil {
		return nil
	}
	free, _, _, err := d.space.Usage()
	if err != nil {
		return err
	}
	logs, err := filepath.Glob(filepath.Join(d.dir, "*.mem"))
	if err != nil {
		return err
	}
	// The pages of its next log's head, its manifest, and a table for each log.
	need := int64(1 << 20)
	for _, path := range logs {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			return fmt.Errorf("looking at %s: %w", path, err)
		}
		need += st.Blocks * 512 // they are sparse
	}
	if free < need {
		return fmt.Errorf("%w: %d bytes are free, and the database in %s needs %d to be opened or closed", store.ErrNoSpace, free, d.dir, need)
	}
	return nil
}

// removeEmptyLogs removes what a crash leaves of a log that Badger was about to
// make, or to remove once it was not needed: it cuts the file to nothing first,
// and then refuses to open a database that holds such a one.
func removeEmptyLogs(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); ext != ".mem" && ext != ".vlog" {
			continue
		}
		info, err := e.Info()
		if err == nil && info.Size() == 0 {
			err = os.Remove(filepath.Join(dir, e.Name()))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (d *DB) usable() error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	switch {
	case d.closed:
		return errors.New("the database is closed")
	case d.poisoned != nil:
		return fmt.Errorf("%w (first error: %v)", store.ErrPoisoned, d.poisoned)
	}
	return nil
}

func (d *DB) poison(err error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.poisoned == nil {
		d.poisoned = err
	}
	return err
}

// View implements [store.DB].
func (d *DB) View(ctx context.Context, fn func(store.Reader) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := d.usable(); err != nil {
		return err
	}
	txn := d.db.NewTransaction(false)
	defer txn.Discard()
	return fn(reader{ctx, txn})
}

// Update implements [store.DB].
func (d *DB) Update(ctx context.Context, fn func(store.Reader) (store.Batch, error)) error {
	d.writer.Lock()
	defer d.writer.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := d.usable(); err != nil {
		return err
	}
	txn := d.db.NewTransaction(true)
	defer txn.Discard()
	batch, err := fn(reader{ctx, txn})
	if err != nil || batch.Len() == 0 {
		return err
	}
	if err := d.Limits().Check(batch); err != nil {
		return err
	}
	if err := d.space.Check(int64(batch.Bytes())); err != nil {
		return err
	}
	for _, w := range batch.Writes() {
		if w.Delete {
			err = txn.Delete(w.Key)
		} else {
			err = txn.Set(w.Key, w.Value)
		}
		if err != nil { // nothing has left the transaction yet
			return fmt.Errorf("%w: %v", store.ErrTooLarge, err)
		}
	}
	if err := txn.Commit(); err != nil {
		return d.poison(fmt.Errorf("committing: %w", err))
	}
	if err := d.syncDir(); err != nil {
		return d.poison(err)
	}
	return nil
}

// syncDir syncs the directory if an entry was made or removed in it since the
// last time. Changing a file's contents does not change its directory's time,
// so this is one stat for most updates.
func (d *DB) syncDir() error {
	info, err := os.Stat(d.dir)
	if err != nil {
		return fmt.Errorf("looking at %s: %w", d.dir, err)
	}
	if info.ModTime().Equal(d.dirTime) {
		return nil
	}
	f, err := os.Open(d.dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("syncing %s: %w", d.dir, err)
	}
	// A change in the same tick of the clock as this one could hide behind an
	// equal time: only a time that lies back far enough is remembered.
	if time.Since(info.ModTime()) > 20*time.Millisecond {
		d.dirTime = info.ModTime()
	}
	return nil
}

// Limits implements [store.DB]. Badger's own limit for a transaction is 15 %
// of the memtable; we stay below it.
func (d *DB) Limits() store.Limits {
	return store.Limits{BatchBytes: int(d.memTable / 8), BatchRows: int(d.memTable / 1342), KeyBytes: 16 << 10, ValueBytes: maxValue}
}

// Verify re-reads every table and checks its checksums.
func (d *DB) Verify(ctx context.Context) (err error) {
	if err := d.usable(); err != nil {
		return err
	}
	defer func() {
		if r := recover(); r != nil { // some damage is a nil pointer to Badger
			err = fmt.Errorf("checksums of the tables in %s: %v", d.dir, r)
		}
	}()
	if err := d.db.VerifyChecksum(); err != nil {
		return fmt.Errorf("checksums of the tables in %s: %w", d.dir, err)
	}
	return nil
}

// Close implements [store.DB]. Where there is no room to write memtables to
// tables it leaves them to the next Open, as a crash would: they are durable.
func (d *DB) Close() error {
	d.writer.Lock()
	defer d.writer.Unlock()
	d.mu.Lock()
	closed := d.closed
	d.closed = true
	d.mu.Unlock()
	if closed {
		return nil
	}
	if err := d.roomToFlush(); errors.Is(err, store.ErrNoSpace) {
		d.log.Warn("the database is left as it is", "reason", err)
		return nil
	}
	return d.db.Close()
}

type reader struct {
	ctx context.Context
	txn *badger.Txn
}

func (r reader) Get(key []byte) ([]byte, error) {
	item, err := r.txn.Get(key)
	if errors.Is(err, badger.ErrKeyNotFound) {
		return nil, store.ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("reading %q: %w", key, err)
	}
	return item.ValueCopy(nil)
}

func (r reader) Scan(rg store.Range) iter.Seq2[store.Row, error] {
	return func(yield func(store.Row, error) bool) {
		o := badger.DefaultIteratorOptions
		o.Reverse = rg.Reverse
		// Values live beside their keys: fetching them ahead, each in a
		// goroutine of its own, would cost more than it saves.
		o.PrefetchValues = false
		it := r.txn.NewIterator(o)
		defer it.Close()
		switch {
		case !rg.Reverse:
			it.Seek(rg.From)
		case rg.To == nil:
			it.Rewind()
		default:
			// Seek in reverse finds the greatest key <= To; To itself is
			// outside the range.
			it.Seek(rg.To)
			if it.Valid() && string(it.Item().Key()) == string(rg.To) {
				it.Next()
			}
		}
		var value []byte // of one row after another
		var err error
		for n := 0; it.Valid(); it.Next() {
			item := it.Item()
			key := item.Key()
			if rg.Reverse && string(key) < string(rg.From) || !rg.Reverse && rg.To != nil && string(key) >= string(rg.To) {
				return
			}
			if n++; n%1024 == 0 && r.ctx.Err() != nil {
				yield(store.Row{}, r.ctx.Err())
				return
			}
			row := store.Row{Key: key}
			if !rg.KeysOnly {
				if value, err = item.ValueCopy(value[:0]); err != nil {
					yield(store.Row{}, fmt.Errorf("reading %q: %w", key, err))
					return
				}
				row.Value = value
				if value == nil {
					row.Value = []byte{}
				}
			}
			if !yield(row, nil) {
				return
			}
		}
	}
}

// logger hands Badger's messages to slog. What Badger calls information is of
// interest to its developers only.
type logger struct{ *slog.Logger }

func (l logger) Errorf(f string, a ...any)   { l.Error(message(f, a)) }
func (l logger) Warningf(f string, a ...any) { l.Warn(message(f, a)) }
func (l logger) Infof(f string, a ...any)    { l.Debug(message(f, a)) }
func (l logger) Debugf(f string, a ...any)   { l.Debug(message(f, a)) }

func message(f string, a []any) string {
	return "badger: " + strings.TrimSpace(fmt.Sprintf(f, a...))
}
