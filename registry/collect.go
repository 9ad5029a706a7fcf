package registry

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/assay-dev/assay/registry/access"
	"github.com/assay-dev/assay/store"
)

const (
	// collectEvery is how often a server collects.
	collectEvery = time.Hour

	// collectBatch is how many blobs one change takes from a repository: its
	// leaf names them all, and a leaf is short.
	collectBatch = 256

	// unnamedRest is how long bytes that no row and no upload names must have
	// rested before they are taken for what a crash left.
	unnamedRest = time.Hour
)

// collectRows is how many rows are looked at under one view, so that no old
// state of the DB is held for long. Tests make it small.
var collectRows = 50_000

// A Collection is what a garbage collection did, or would do.
type Collection struct {
	DryRun bool `json:"dryRun"`

	// Blobs are those taken from a repository because no manifest there
	// names them and their lease is over.
	Blobs []CollectedBlob `json:"blobs"`

	// Freed counts the bytes of blobs that no repository has any more.
	Freed int64 `json:"freed"`

	Uploads int `json:"uploads"` // that rested too long

	// Unnamed are bytes in storage that no row names: what a crash left.
	Unnamed      int   `json:"unnamed"`
	UnnamedBytes int64 `json:"unnamedBytes"`

	// Missing are blobs whose bytes are gone from storage. They are set
	// aside as damaged, so that the next push of the digest heals them.
	Missing []digest.Digest `json:"missing"`
}

// A CollectedBlob is a blob that a repository does not have any more.
type CollectedBlob struct {
	Repository string        `json:"repository"`
	Digest     digest.Digest `json:"digest"`
	Size       int64         `json:"size"`
	Since      time.Time     `json:"since"`
}

// Collect takes back what nothing needs: blobs that no manifest of their
// repository names and whose lease is over, uploads that have rested too
// long, and bytes in storage that no row names. It also looks the other way,
// for rows whose bytes are gone. Manifests are never collected: they are the
// record.
//
// Writes go on meanwhile; only one collection runs at a time. With dryRun
// nothing is changed, and the result says what would be.
func (r *Registry) Collect(ctx context.Context, actor access.Actor, dryRun bool) (Collection, error) {
	if err := actor.Authorize(access.Operate, ""); err != nil {
		return Collection{}, err
	}
	r.maintenance.Lock()
	defer r.maintenance.Unlock()
	c := &collector{r: r, ctx: ctx, actor: actor, now: r.clock(), Collection: Collection{
		DryRun: dryRun, Blobs: []CollectedBlob{}, Missing: []digest.Digest{},
	}}
	r.leases.forget(c.now)
	err := c.expireUploads()
	if err == nil {
		err = c.expireLeases()
	}
	if err == nil {
		err = c.reconcile()
	}
	return c.Collection, err
}

type collector struct {
	Collection
	r     *Registry
	ctx   context.Context
	actor access.Actor
	now   time.Time

	rows   int       // looked at, for breathe
	worked time.Time // since when, without a pause
}

// restEvery is after how many rows a collection pauses, for as long as it took
// to look at them: it has all the time there is, and those who push have not.
const restEvery = 500

// breathe is called for each row.
func (c *collector) breathe() {
	if c.rows++; c.rows%restEvery != 0 {
		return
	}
	now := time.Now()
	if !c.worked.IsZero() {
		time.Sleep(min(now.Sub(c.worked), 50*time.Millisecond))
	}
	c.worked = time.Now()
}

// expireUploads drops sessions that have rested too long, in memory or not.
func (c *collector) expireUploads() error {
	r := c.r
	var expired []string
	var freed []store.Key
	err := r.view(c.ctx, func(rd store.Reader) error {
		for row, err := range rd.Scan(under("upload")) {
			if err != nil {
				return err
			}
			var u uploadRow
			if err := decode(row, &u); err != nil {
				return err
			}
			if c.now.Sub(u.At) > r.leases.ttl {
				expired, freed = append(expired, parts(row.Key)[0]), append(freed, u.Key)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	running := map[string]bool{}
	for _, s := range r.uploads.all() {
		s.mu.Lock()
		running[s.id] = true // its row may be old, it is not
		if !s.gone && c.now.Sub(s.active) > r.leases.ttl {
			c.Uploads++
			if !c.DryRun {
				r.log.Info("dropping an upload that has rested too long", "upload", s.id, "repository", s.repo, "bytes", s.offset)
				r.drop(s)
			}
		}
		s.mu.Unlock()
	}
	for i, id := range expired {
		if running[id] {
			continue
		}
		c.Uploads++
		if c.DryRun {
			continue
		}
		if err := r.submit(c.ctx, func(tx *txn) error {
			return dropUploadRow(tx, id)
		}); err != nil {
			return err
		}
		r.removeBlob(freed[i])
	}
	return nil
}

// expireLeases takes from repositories the blobs that no manifest there names.
func (c *collector) expireLeases() error {
	for from := []byte(nil); ; {
		var found []CollectedBlob
		var err error
		if found, from, err = c.unused(from); err != nil {
			return err
		}
		slices.SortStableFunc(found, func(a, b CollectedBlob) int {
			return compare(a.Repository, b.Repository)
		})
		for len(found) > 0 {
			n := 1
			for n < min(len(found), collectBatch) && found[n].Repository == found[0].Repository {
				n++
			}
			if err := c.take(found[:n]); err != nil {
				return err
			}
			found = found[n:]
		}
		if from == nil {
			return nil
		}
	}
}

func compare(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// unused reads a stretch of the rows (blob, repository) and beside it those
// of (blob, repository, manifest), which are in the same order, and returns
// the ones without a manifest whose lease is over, and where to go on: nil at
// the end.
func (c *collector) unused(from []byte) (found []CollectedBlob, next []byte, err error) {
	err = c.r.view(c.ctx, func(rd store.Reader) error {
		where := under("linkedin")
		where.KeysOnly = true
		if from != nil {
			where.From = from
		}
		users := under("uses")
		users.KeysOnly = true
		if from != nil {
			// The same digest and repository, in the other family.
			users.From = append([]byte("uses"), from[len("linkedin"):]...)
		}
		nextUser, stop := iter.Pull2(rd.Scan(users))
		defer stop()
		user, more, err := advance(nextUser)
		n := 0
		for row, scanErr := range rd.Scan(where) {
			if scanErr != nil {
				return scanErr
			}
			c.breathe()
			p := parts(row.Key)
			if n++; n > collectRows {
				next = slices.Clone(row.Key)
				return nil
			}
			d, repo := p[0], p[1]
			for err == nil && more && (user[0] < d || user[0] == d && user[1] < repo) {
				c.breathe()
				user, more, err = advance(nextUser)
			}
			if err != nil {
				return err
			}
			if more && user[0] == d && user[1] == repo {
				continue
			}
			var lease linkedRow
			if ok, err := load(rd, key("linked", repo, d), &lease); err != nil {
				return err
			} else if !ok || !c.r.leases.expired(repo, lease.At, c.now) {
				continue
			}
			var b blobRow
			if _, err := load(rd, key("blob", d), &b); err != nil {
				return err
			}
			found = append(found, CollectedBlob{repo, digest.Digest(d), b.Size, lease.At})
		}
		return nil
	})
	return found, next, err
}

// advance returns the parts of the next key.
func advance(next func() (store.Row, error, bool)) (user []string, more bool, err error) {
	row, err, more := next()
	if err != nil || !more {
		return nil, false, err
	}
	return parts(row.Key), true, nil
}

// take takes blobs from one repository.
func (c *collector) take(list []CollectedBlob) error {
	r, repo := c.r, list[0].Repository
	if c.DryRun {
		c.Blobs = append(c.Blobs, list...)
		for _, b := range list {
			c.Freed += b.Size
		}
		return nil
	}
	var all []digest.Digest
	since, size := map[digest.Digest]time.Time{}, map[digest.Digest]int64{}
	for _, b := range list {
		all = append(all, b.Digest)
		since[b.Digest], size[b.Digest] = b.Since, b.Size
	}
	claimed := r.leases.claim(repo, all, since, r.clock())
	defer r.leases.release(repo, all)
	if len(claimed) == 0 {
		return nil
	}
	var taken []digest.Digest
	var garbage []store.Key
	err := r.submit(c.ctx, func(tx *txn) error {
		taken, garbage = nil, nil
		for _, d := range claimed {
			// What was true when the rows were scanned need not be now.
			var lease linkedRow
			ok, err := load(tx, key("linked", repo, string(d)), &lease)
			if err != nil {
				return err
			}
			if !ok || !lease.At.Equal(since[d]) {
				continue
			}
			used, err := firstUser(tx, repo, d)
			if err != nil {
				return err
			}
			if used != "" {
				continue
			}
			k, err := unlink(tx, repo, d)
			if err != nil {
				return err
			}
			if k != "" {
				garbage = append(garbage, k)
			}
			taken = append(taken, d)
		}
		if len(taken) > 0 {
			tx.emit(Event{Kind: EventBlobCollect, Actor: c.actor.ID, Request: c.actor.RequestID, Repository: repo, Digests: taken})
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, b := range list {
		if slices.Contains(taken, b.Digest) {
			c.Blobs = append(c.Blobs, b)
			r.log.Info("collected a blob that no manifest names", "repository", repo, "digest", b.Digest, "bytes", b.Size)
		}
	}
	for _, k := range garbage {
		r.removeBlob(k)
	}
	if len(garbage) > 0 {
		for _, d := range taken {
			c.Freed += size[d]
		}
	}
	return nil
}

// reconcile compares storage with rows, both ways.
func (c *collector) reconcile() error {
	r := c.r
	// Storage is listed first: what is written and named while the rows are
	// read is then no surprise, and what is removed meanwhile has no row.
	stored := map[store.Key]store.BlobInfo{}
	for info, err := range r.blobs.List(c.ctx) {
		if err != nil {
			return err
		}
		stored[info.Key] = info
	}
	running := map[store.Key]bool{}
	for _, s := range r.uploads.all() {
		s.mu.Lock()
		if s.writer != nil {
			running[s.writer.Key()] = true
		}
		s.mu.Unlock()
	}
	for _, k := range r.pins.all() {
		running[k] = true
	}
	missing := map[digest.Digest]store.Key{}
	named := func(d digest.Digest, k store.Key) {
		if k == "" {
			return
		}
		if info, ok := stored[k]; !ok || !info.Committed {
			missing[d] = k
		}
		delete(stored, k)
	}
	for _, family := range []string{"blob", "manifest", "upload", "quarantined"} {
		rg := under(family)
		for rg.From != nil {
			var err error
			if rg.From, err = c.scanSome(rg, func(row store.Row) error {
				switch family {
				case "blob":
					var b blobRow
					if err := decode(row, &b); err != nil {
						return err
					}
					named(digest.Digest(parts(row.Key)[0]), b.Key)
				case "manifest":
					var m manifestRow
					if err := decode(row, &m); err != nil {
						return err
					}
					named(digest.Digest(parts(row.Key)[0]), m.Blob)
				case "upload":
					var u uploadRow
					if err := decode(row, &u); err != nil {
						return err
					}
					delete(stored, u.Key)
				case "quarantined":
					var q quarantinedRow
					if err := decode(row, &q); err != nil {
						return err
					}
					delete(stored, q.Key)
				}
				return nil
			}); err != nil {
				return err
			}
		}
	}
	for k, info := range stored {
		if running[k] || c.now.Sub(info.Modified) <= unnamedRest {
			continue
		}
		c.Unnamed++
		c.UnnamedBytes += info.Size
		if !c.DryRun {
			r.log.Info("removing bytes that nothing names", "key", k, "bytes", info.Size)
			r.removeBlob(k)
		}
	}
	for d, k := range missing {
		// It may have been written after storage was listed.
		b, err := r.blobs.Open(c.ctx, k)
		if err == nil {
			b.Close()
			continue
		}
		if !errors.Is(err, store.ErrNotFound) {
			return err
		}
		gone := true
		if !c.DryRun {
			if gone, err = r.quarantine(c.ctx, c.actor, d, k); err != nil {
				return err
			}
		}
		if gone {
			r.log.Error("the bytes of stored content are gone; push it again", "digest", d)
			c.Missing = append(c.Missing, d)
		}
	}
	return nil
}

// scanSome reads a stretch of rows under one view and returns where to go on,
// or nil at the end.
func (c *collector) scanSome(rg store.Range, fn func(store.Row) error) (next []byte, err error) {
	err = c.r.view(c.ctx, func(rd store.Reader) error {
		n := 0
		for row, err := range rd.Scan(rg) {
			if err != nil {
				return err
			}
			if n++; n > collectRows {
				next = slices.Clone(row.Key)
				return nil
			}
			if err := fn(row); err != nil {
				return err
			}
			c.breathe()
		}
		return nil
	})
	return next, err
}

// Maintain collects every hour, and publishes what follows from pushes, until
// ctx ends. A server runs one.
func (r *Registry) Maintain(ctx context.Context) {
	var follower sync.WaitGroup
	follower.Go(func() { r.follow(ctx) })
	defer follower.Wait()
	tick := time.NewTicker(collectEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if _, err := r.Collect(ctx, access.System(), false); err != nil && ctx.Err() == nil {
				r.log.Error("collecting garbage", "error", err)
			}
		}
	}
}

// firstUser returns a manifest of the repository that names the blob, or "".
func firstUser(rd store.Reader, repo string, d digest.Digest) (string, error) {
	rg := under("uses", string(d), repo)
	rg.KeysOnly = true
	for row, err := range rd.Scan(rg) {
		if err != nil {
			return "", err
		}
		return parts(row.Key)[2], nil
	}
	return "", nil
}

// unlink takes a blob from a repository, and if that was the last one that
// had it, returns the key of its bytes, to be removed after the commit.
func unlink(tx *txn, repo string, d digest.Digest) (garbage store.Key, err error) {
	tx.delete(key("linked", repo, string(d)))
	tx.delete(key("linkedin", string(d), repo))
	tx.set(key("dropped", repo, string(d), number(tx.index)), nil)
	for _, err := range tx.Scan(under("linkedin", string(d))) {
		return "", err // somebody else has it
	}
	var row blobRow
	ok, err := load(tx, key("blob", string(d)), &row)
	if err != nil || !ok {
		return "", err
	}
	tx.delete(key("blob", string(d)))
	return row.Key, dropStates(tx, "states", string(d))
}

// errGone says that content which somebody holds has no bytes.
func errGone(d digest.Digest) error {
	return fmt.Errorf("%w: the bytes of %s were damaged or lost; push it again", ErrManifestUnknown, d)
}
