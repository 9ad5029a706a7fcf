// Package registry is the heart of Assay: what a model registry is, without
// any protocol. Manifests, tags, numbered versions, referrers, lineage,
// environments and deployments, the log of every change, and the decisions of
// the gate.
//
// Rows are in a [store.DB], bytes in [store.Blobs], and there is one way to
// change the record: a change goes to the sequencer (sequencer.go), which
// commits it together with its log leaf. keys.go is the table of everything
// that is stored. Every method takes an [access.Actor] and asks for itself
// whether the actor may.
//
// All methods may be called concurrently.
package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/assay-dev/assay/store"
)

// Options configure Open. DB, Blobs and Identity are needed.
type Options struct {
	DB       store.DB
	Blobs    store.Blobs
	Identity *Identity

	// Clock tells the time; nil is the system's.
	Clock func() time.Time

	// Log takes what operators should see; nil discards it.
	Log *slog.Logger

	// Lease is how long an upload may rest before it is dropped, and how long
	// a blob that no manifest names is kept; 0 is a day.
	Lease time.Duration
}

// A Registry is a model registry over a DB and Blobs, which it does not close.
type Registry struct {
	db       store.DB
	blobs    store.Blobs
	identity *Identity
	clock    func() time.Time
	log      *slog.Logger

	seq     *sequencer
	uploads *uploads
	buffers buffers
	leases  *leases

	verifiers chan struct{} // has room for as many as may verify at once
	reviews   chan struct{} // says that a trust file was put in force
	parsed    atomic.Pointer[parsedTrust]
	ahead     ahead

	status struct {
		sync.Mutex
		last SignedStatusList // guarded by the mutex
	}

	published   chan struct{} // has one when a manifest with large blobs was pushed
	maintenance sync.Mutex    // held by the one collection that runs
	pins        pins

	removals sync.WaitGroup // of large duplicates
	removing chan struct{}  // has room for as many as are removed at once
}

// Open opens a registry. It refuses a DB whose schema it does not know.
func Open(ctx context.Context, opt Options) (*Registry, error) {
	r := &Registry{
		db: opt.DB, blobs: opt.Blobs, identity: opt.Identity,
		clock: opt.Clock, log: opt.Log, verifiers: make(chan struct{}, runtime.GOMAXPROCS(0)),
		reviews: make(chan struct{}, 1), removing: make(chan struct{}, 4),
	}
	if r.clock == nil {
		r.clock = time.Now
	}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	if opt.Lease == 0 {
		opt.Lease = 24 * time.Hour
	}
	if err := r.checkSchema(ctx); err != nil {
		return nil, err
	}
	r.uploads = &uploads{sessions: map[string]*session{}, each: map[string]int{}}
	r.published = make(chan struct{}, 1)
	r.seq = newSequencer(r.db, r.clock)
	r.leases = newLeases(opt.Lease, r.clock())
	return r, nil
}

func (r *Registry) checkSchema(ctx context.Context) error {
	var version int
	var known bool
	err := r.db.View(ctx, func(rd store.Reader) (err error) {
		known, err = load(rd, key("schema"), &version)
		return err
	})
	if err != nil {
		return err
	}
	if known && version == schemaRestoring {
		return errors.New("a restore into this folder was not finished: empty the folder and restore again")
	}
	if known && version != schemaVersion {
		return fmt.Errorf("the data is of schema version %d and this program knows version %d: "+
			"run the version of assay that wrote it, or restore a backup of this one's", version, schemaVersion)
	}
	if known {
		return nil
	}
	return r.db.Update(ctx, func(rd store.Reader) (b store.Batch, err error) {
		b.Set(key("schema"), encode(schemaVersion))
		return b, nil
	})
}

// Close finishes changes that were submitted and keeps running uploads for
// their clients to resume.
func (r *Registry) Close() error {
	r.uploads.close()
	r.seq.close()
	r.removals.Wait()
	return nil
}

// Ready returns nil if the registry can read and write, and else why not.
func (r *Registry) Ready(ctx context.Context) error {
	if err := r.db.View(ctx, func(store.Reader) error { return nil }); err != nil {
		return err
	}
	return r.blobs.Ready()
}

// Stats are counts since the registry was opened, and what there is now.
type Stats struct {
	Changes, Refused int64         // that were submitted; that were not made
	Commits          int64         // in which they were made together
	CommitTime       time.Duration // of all of those
	Uploads          int           // sessions in memory
	Leaves           int64         // of the log
}

// Stats returns what a monitor wants to know. It is cheap.
func (r *Registry) Stats(ctx context.Context) (Stats, error) {
	s := Stats{
		Changes: r.seq.changes.Load(), Refused: r.seq.refused.Load(), Commits: r.seq.commits.Load(),
		CommitTime: time.Duration(r.seq.nanos.Load()),
	}
	r.uploads.mu.Lock()
	s.Uploads = len(r.uploads.sessions)
	r.uploads.mu.Unlock()
	var log logRow
	err := r.view(ctx, func(rd store.Reader) error {
		_, err := load(rd, key("log"), &log)
		return err
	})
	s.Leaves = log.Size
	return s, err
}

// view reads one state.
func (r *Registry) view(ctx context.Context, fn func(store.Reader) error) error {
	return r.db.View(ctx, fn)
}

// submit makes a change; see [sequencer.submit].
func (r *Registry) submit(ctx context.Context, c change) error {
	return r.seq.submit(ctx, c)
}
