package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/assay-dev/assay/registry/tlog"
	"github.com/assay-dev/assay/store"
)

// A change reads the newest state through tx and says through it what to
// write and which event that is. It may run more than once, so besides tx it
// may touch only variables that it sets anew on every run, which its
// submitter reads after submit returned. It does no I/O of its own: parsing,
// hashing and verification happen before.
type change func(tx *txn) error

// A txn is one run of a change.
type txn struct {
	overlay // what the change wrote, over what was accepted before it

	// index is the number the change's event will have in the log, and now
	// its time: never before the time of the leaf before it.
	index int64
	now   time.Time

	event *Event
}

// put writes a row.
func (tx *txn) put(k []byte, v any) { tx.set(k, encode(v)) }

// emit names the event that the change is. A change is at most one event.
func (tx *txn) emit(e Event) {
	e.At = tx.now
	tx.event = &e
}

// check holds the rule that there is no record without an event and no event
// without a record.
func (tx *txn) check() error {
	touched := ""
	for k := range tx.writes {
		f, ok := families[familyOf([]byte(k))]
		switch {
		case !ok:
			return fmt.Errorf("registry: key %q is in no family", k)
		case f.class == sequenced:
			return fmt.Errorf("registry: key %q is the sequencer's own", k)
		case f.class == record:
			touched = k
		}
	}
	switch {
	case touched != "" && tx.event == nil:
		return fmt.Errorf("registry: record row %q would change without an event", touched)
	case touched == "" && tx.event != nil:
		return fmt.Errorf("registry: event %q without a change of the record", tx.event.Kind)
	}
	return nil
}

// An overlay is a state with writes on top of another.
type overlay struct {
	below  store.Reader
	writes map[string]store.Write
}

func (o *overlay) set(k, v []byte) {
	o.writes[string(k)] = store.Write{Key: k, Value: v}
}

func (o *overlay) delete(k []byte) {
	o.writes[string(k)] = store.Write{Key: k, Delete: true}
}

// Get implements [store.Reader].
func (o *overlay) Get(k []byte) ([]byte, error) {
	w, ok := o.writes[string(k)]
	switch {
	case !ok:
		return o.below.Get(k)
	case w.Delete:
		return nil, store.ErrNotFound
	}
	return bytes.Clone(w.Value), nil
}

// Scan implements [store.Reader] by merging.
func (o *overlay) Scan(r store.Range) iter.Seq2[store.Row, error] {
	var own []store.Write
	for _, w := range o.writes {
		if bytes.Compare(w.Key, r.From) >= 0 && (r.To == nil || bytes.Compare(w.Key, r.To) < 0) {
			own = append(own, w)
		}
	}
	if len(own) == 0 {
		return o.below.Scan(r)
	}
	order := func(a, b []byte) int {
		if r.Reverse {
			a, b = b, a
		}
		return bytes.Compare(a, b)
	}
	slices.SortFunc(own, func(a, b store.Write) int { return order(a.Key, b.Key) })
	return func(yield func(store.Row, error) bool) {
		emit := func(w store.Write) bool {
			if w.Delete {
				return true
			}
			row := store.Row{Key: bytes.Clone(w.Key)}
			if !r.KeysOnly {
				row.Value = bytes.Clone(w.Value)
			}
			return yield(row, nil)
		}
		for row, err := range o.below.Scan(r) {
			if err != nil {
				yield(row, err)
				return
			}
			for len(own) > 0 && order(own[0].Key, row.Key) < 0 {
				if !emit(own[0]) {
					return
				}
				own = own[1:]
			}
			if len(own) > 0 && bytes.Equal(own[0].Key, row.Key) {
				if !emit(own[0]) {
					return
				}
				own = own[1:]
				continue
			}
			if !yield(row, nil) {
				return
			}
		}
		for _, w := range own {
			if !emit(w) {
				return
			}
		}
	}
}

// maxGroup is how many changes share a commit at most. A change with a large
// manifest weighs some hundred KiB, so the group is cut by weight as well.
const maxGroup = 512

// logRoom is kept free in each batch for the log's own row.
const logRoom = 1 << 10

// A sequencer is the only writer of the DB. It takes all changes that wait,
// runs them one after another over the newest state and those accepted before
// them, drops the ones that fail, and commits the rest with one sync: the
// rows, and for each event its leaf and the Merkle hashes that follow from it.
type sequencer struct {
	db    store.DB
	clock func() time.Time

	queue chan *waiting
	done  chan struct{} // closed when run has returned

	mu     sync.RWMutex // guards closed against sends on queue
	closed bool

	changes, refused, commits, nanos atomic.Int64
}

type waiting struct {
	change  change
	outcome chan error
}

func newSequencer(db store.DB, clock func() time.Time) *sequencer {
	s := &sequencer{db: db, clock: clock, queue: make(chan *waiting, maxGroup), done: make(chan struct{})}
	go s.run()
	return s
}

// submit returns when the change is durable, or was refused. A change that
// was handed over is finished whatever becomes of ctx: giving up half-way
// would leave the caller not knowing what happened.
func (s *sequencer) submit(ctx context.Context, c change) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	w := &waiting{c, make(chan error, 1)}
	s.mu.RLock()
	if s.closed {
		s.mu.RUnlock()
		return ErrClosed
	}
	s.queue <- w
	s.mu.RUnlock()
	return <-w.outcome
}

// close finishes what was submitted and stops.
func (s *sequencer) close() {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.queue)
	}
	s.mu.Unlock()
	<-s.done
}

func (s *sequencer) run() {
	defer close(s.done)
	var group []*waiting
	for w := range s.queue {
		group = append(group[:0], w)
	fill:
		for len(group) < maxGroup {
			select {
			case w, ok := <-s.queue:
				if !ok {
					break fill
				}
				group = append(group, w)
			default:
				break fill
			}
		}
		for rest := group; len(rest) > 0; {
			rest = rest[s.commit(rest):]
		}
	}
}

// commit runs the changes of a group until one does not fit into the batch
// any more, commits those, tells each how it went, and returns how many it
// dealt with: at least one.
func (s *sequencer) commit(group []*waiting) int {
	now := s.clock().UTC()
	start := time.Now()
	limits := s.db.Limits()
	outcomes := make([]error, len(group))
	taken := 0
	err := s.db.Update(context.Background(), func(r store.Reader) (store.Batch, error) {
		clear(outcomes)
		var log logRow
		if _, err := load(r, key("log"), &log); err != nil {
			return store.Batch{}, err
		}
		accepted := &overlay{below: r, writes: map[string]store.Write{}}
		hashes := hashesOf(accepted)
		bytes, rows := 0, 0
		for taken = 0; taken < len(group); taken++ {
			at := now
			if log.At.After(at) {
				at = log.At // the log's time does not go back
			}
			tx := &txn{
				overlay: overlay{below: accepted, writes: map[string]store.Write{}},
				index:   log.Size, now: at,
			}
			err := group[taken].change(tx)
			if err == nil {
				err = tx.check()
			}
			if err == nil && tx.event != nil {
				err = sequence(tx, hashes)
			}
			if err != nil {
				outcomes[taken] = err
				continue
			}
			b, n := weight(tx.writes)
			if bytes+b > limits.BatchBytes-logRoom || rows+n > limits.BatchRows-1 {
				if rows > 0 {
					break // it goes first into the next batch
				}
				outcomes[taken] = fmt.Errorf("%w: one change of %d rows and %d bytes", store.ErrTooLarge, n, b)
				continue
			}
			bytes, rows = bytes+b, rows+n
			maps.Copy(accepted.writes, tx.writes)
			if tx.event != nil {
				log.Size, log.At = log.Size+1, at
				accepted.set(key("log"), encode(log))
			}
		}
		var batch store.Batch
		for _, k := range slices.Sorted(maps.Keys(accepted.writes)) {
			if w := accepted.writes[k]; w.Delete {
				batch.Delete(w.Key)
			} else {
				batch.Set(w.Key, w.Value)
			}
		}
		return batch, nil
	})
	// From here on the changes that succeeded are part of the record.
	if err != nil && taken == 0 {
		taken = 1
	}
	for i, w := range group[:taken] {
		if err != nil && outcomes[i] == nil {
			outcomes[i] = err
		}
		if outcomes[i] != nil {
			s.refused.Add(1)
		}
		w.outcome <- outcomes[i]
	}
	s.changes.Add(int64(taken))
	s.commits.Add(1)
	s.nanos.Add(int64(time.Since(start)))
	return taken
}

func weight(writes map[string]store.Write) (bytes, rows int) {
	for k, w := range writes {
		bytes += len(k) + len(w.Value)
	}
	return bytes, len(writes)
}

// sequence adds to tx the leaf of its event and what follows from it.
func sequence(tx *txn, hashes tlog.HashReader) error {
	leaf, err := encodeLeaf(*tx.event)
	if err != nil {
		return err
	}
	tx.set(key("leaf", number(tx.index)), leaf)
	first, stored, err := tlog.StoredHashes(tx.index, leaf, hashes)
	if err != nil {
		return fmt.Errorf("hashing log leaf %d: %w", tx.index, err)
	}
	for i, h := range stored {
		tx.set(key("hash", number(first+int64(i))), h[:])
	}
	for _, list := range [][]digest.Digest{tx.event.Digests, tx.event.Subjects} {
		for _, d := range list {
			tx.set(key("about", string(d), number(tx.index)), nil)
		}
	}
	return nil
}

// hashesOf reads the stored Merkle hashes of a state.
func hashesOf(r store.Reader) tlog.HashReader {
	return tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(indexes))
		for i, x := range indexes {
			raw, err := r.Get(key("hash", number(x)))
			if errors.Is(err, store.ErrNotFound) {
				return nil, fmt.Errorf("stored Merkle hash %d is missing; run 'assay fsck'", x)
			}
			if err != nil {
				return nil, err
			}
			if len(raw) != len(out[i]) {
				return nil, fmt.Errorf("stored Merkle hash %d has %d bytes; run 'assay fsck'", x, len(raw))
			}
			copy(out[i][:], raw)
		}
		return out, nil
	})
}
