package registry

import (
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/assay-dev/assay/registry/access"
)

// Leases keep blobs that no manifest names yet. A lease is the row that gives
// a repository its blob, and lasts as long as an upload may rest (a day): from
// the commit that made the row, and again from every sign that somebody is
// still pushing to the repository. A push of many files that takes days keeps
// its first file by sending the last one.
//
// Such signs are kept in memory, so that asking for a blob never writes. A
// process that has just started has seen none, so it takes its own start for
// one: nothing is collected before the server has run for a whole lease.
type leases struct {
	ttl    time.Duration
	opened time.Time

	mu     sync.Mutex
	active map[string]time.Time // by repository; guarded by mu

	// collecting has the blobs that a collection is about to take from a
	// repository; guarded by mu. See [Registry.wanted].
	collecting map[leased]bool
}

type leased struct {
	repo string
	d    digest.Digest
}

func newLeases(ttl time.Duration, now time.Time) *leases {
	return &leases{ttl: ttl, opened: now, active: map[string]time.Time{}, collecting: map[leased]bool{}}
}

// renew notes that somebody is pushing to a repository.
func (l *leases) renew(repo string, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.active[repo] = now
}

// expired reports whether a lease of this age is over.
func (l *leases) expired(repo string, since, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, sign := range []time.Time{l.opened, l.active[repo]} {
		if sign.After(since) {
			since = sign
		}
	}
	return now.Sub(since) > l.ttl
}

// forget drops what is too old to keep anything.
func (l *leases) forget(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for repo, at := range l.active {
		if now.Sub(at) > l.ttl {
			delete(l.active, repo)
		}
	}
}

// claim marks blobs as about to be collected and returns those whose lease is
// over. The caller releases all of them when the collection is committed.
func (l *leases) claim(repo string, blobs []digest.Digest, since map[digest.Digest]time.Time, now time.Time) (taken []digest.Digest) {
	l.mu.Lock()
	for _, d := range blobs {
		l.collecting[leased{repo, d}] = true
	}
	l.mu.Unlock()
	for _, d := range blobs {
		if l.expired(repo, since[d], now) {
			taken = append(taken, d)
		}
	}
	return taken
}

func (l *leases) release(repo string, blobs []digest.Digest) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range blobs {
		delete(l.collecting, leased{repo, d})
	}
}

// wanted notes that somebody who may push asks whether a blob is there, and
// reports whether it may be answered from the rows. It may not while the blob
// is being collected: the answer is then that it is not there.
//
// It must be called before the rows are read. Either it is called before a
// collection claims the blob, which then finds the lease renewed; or while it
// is claimed; or afterwards, and the rows show what became of it. So nobody
// who was told that a blob is there finds it gone when the manifest arrives.
func (r *Registry) wanted(actor access.Actor, repo string, d digest.Digest) bool {
	if actor.Authorize(access.Push, repo) != nil {
		return true // who may not push relies on nothing
	}
	l := r.leases
	l.mu.Lock()
	defer l.mu.Unlock()
	l.active[repo] = r.clock()
	return !l.collecting[leased{repo, d}]
}
