package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/assay-dev/assay/registry/access"
	"github.com/assay-dev/assay/store"
	"github.com/assay-dev/assay/verify"
)

// A Flip is a statement that comes out otherwise under another trust file.
type Flip struct {
	Repository    string        `json:"repository"`
	Subject       digest.Digest `json:"subject"`
	Referrer      digest.Digest `json:"referrer"`
	PredicateType string        `json:"predicateType,omitempty"`
	Before        Standing      `json:"before"`
	After         Standing      `json:"after"`
}

// A Standing is what verification says of a statement under a trust file.
type Standing struct {
	Outcome  string `json:"outcome"`
	Message  string `json:"message,omitempty"`
	Remedy   string `json:"remedy,omitempty"`
	Identity string `json:"identity,omitempty"`
	Role     string `json:"role,omitempty"`
}

// A Review is what a trust file means for the statements that are there.
type Review struct {
	Trust    digest.Digest `json:"trust"`
	Started  time.Time     `json:"started"`
	Finished time.Time     `json:"finished,omitzero"` // zero while it runs
	Examined int           `json:"examined"`          // manifests with statements
	Flipped  int           `json:"flipped"`           // statements
	Flips    []Flip        `json:"flips,omitempty"`   // the first maxFlips of them
}

// reviewRow also knows where to go on after a restart.
type reviewRow struct {
	Review
	Cursor []byte `json:"cursor,omitempty"` // the last fact that was looked at

	Generation int `json:"generation,omitempty"` // of the program that reviews
}

const (
	maxFlips   = 1000
	reviewPage = 64 // facts that are read at once
)

func (rv *Review) add(flips []Flip) {
	rv.Flipped += len(flips)
	if room := maxFlips - len(rv.Flips); room > 0 {
		rv.Flips = append(rv.Flips, flips[:min(room, len(flips))]...)
	}
}

// TestTrust returns what would flip if a trust file were put in force, and
// changes nothing.
func (r *Registry) TestTrust(ctx context.Context, actor access.Actor, body []byte) (Review, error) {
	if err := actor.Authorize(access.Operate, ""); err != nil {
		return Review{}, err
	}
	t, err := verify.ParseTrust(body)
	if err != nil {
		return Review{}, fmt.Errorf("%w: %w", ErrDocumentInvalid, err)
	}
	rv := Review{Trust: t.Digest(), Started: r.clock().UTC()}
	var cursor []byte
	for {
		page, err := r.factsAfter(ctx, cursor)
		if err != nil {
			return rv, err
		}
		if len(page) == 0 {
			rv.Finished = r.clock().UTC()
			return rv, nil
		}
		for _, f := range page {
			d, err := r.again(ctx, f, t)
			if err != nil {
				return rv, err
			}
			rv.Examined++
			rv.add(f.flips(d))
			cursor = f.key
		}
	}
}

// TrustReview returns how far the review of the trust file in force is, and
// what it flipped. Before the first trust file there is none.
func (r *Registry) TrustReview(ctx context.Context, actor access.Actor) (rv Review, err error) {
	if err := actor.Authorize(access.Audit, ""); err != nil {
		return Review{}, err
	}
	err = r.view(ctx, func(rd store.Reader) error {
		var row reviewRow
		if ok, err := load(rd, key("review"), &row); err != nil || !ok {
			return orElse(err, fmt.Errorf("%w: no trust file was applied yet", ErrUnknown))
		}
		rv = row.Review
		return nil
	})
	return rv, err
}

// ReviewTrust verifies again what was verified under older trust files, or by an
// older program: what is outstanding, and then after each [Registry.SetTrust],
// until ctx ends.
// Each statement that flips is an event of the log.
func (r *Registry) ReviewTrust(ctx context.Context) {
	for {
		switch rv, err := r.review(ctx); {
		case ctx.Err() != nil || errors.Is(err, ErrClosed):
			return
		case err != nil:
			r.log.Error("reviewing statements under the new trust file; it goes on after the next one is applied, or the next start", "error", err)
		case rv != nil:
			r.log.Info("reviewed statements under the trust file", "trust", rv.Trust, "examined", rv.Examined, "flipped", rv.Flipped)
		}
		select {
		case <-ctx.Done():
			return
		case <-r.reviews:
		}
	}
}

// review finishes the review of the trust file in force; nil if it was
// finished before.
func (r *Registry) review(ctx context.Context) (*Review, error) {
	for {
		rv, err := r.reviewOnce(ctx)
		if !errors.Is(err, errTrustMoved) {
			return rv, err
		}
	}
}

func (r *Registry) reviewOnce(ctx context.Context) (*Review, error) {
	var doc Document
	var row reviewRow
	err := r.view(ctx, func(rd store.Reader) (err error) {
		if doc, err = currentDocument(rd, documentTrust); err == nil {
			_, err = load(rd, key("review"), &row)
		}
		return err
	})
	if err != nil || doc.LogIndex < 0 {
		return nil, err
	}
	same := row.Trust == doc.Digest && row.Generation == generation
	if same && !row.Finished.IsZero() {
		return nil, nil
	}
	if !same {
		row = reviewRow{Review: Review{Trust: doc.Digest, Started: r.clock().UTC()}, Generation: generation}
	}
	trust, err := verify.ParseTrust(doc.Body)
	if err != nil {
		return nil, err
	}
	for {
		page, err := r.factsAfter(ctx, row.Cursor)
		if err != nil {
			return nil, err
		}
		for _, f := range page {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			row.Examined++
			row.Cursor = f.key
			if f.current(trust.Digest()) {
				continue // pushed since
			}
			d, err := r.again(ctx, f, trust)
			if err != nil {
				return nil, err
			}
			d.trust = doc.LogIndex
			flips := f.flips(d)
			if len(flips) == 0 {
				continue
			}
			if err := r.flip(ctx, f, d); err != nil {
				return nil, err
			}
			row.add(flips)
		}
		if len(page) == 0 {
			row.Finished = r.clock().UTC()
		}
		err = r.submit(ctx, func(tx *txn) error {
			now, err := currentDocument(tx, documentTrust)
			if err == nil && now.Digest != row.Trust {
				err = errTrustMoved
			}
			if err == nil {
				tx.put(key("review"), row)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
		if len(page) == 0 {
			return &row.Review, nil
		}
	}
}

// A stored fact is a row with its key.
type storedFact struct {
	factRow
	key               []byte
	repo              string
	subject, referrer digest.Digest
}

// factsAfter reads a page of facts of all repositories.
func (r *Registry) factsAfter(ctx context.Context, cursor []byte) (page []storedFact, err error) {
	err = r.view(ctx, func(rd store.Reader) error {
		page = nil
		rg := under("fact")
		if cursor != nil {
			rg.From = append(bytes.Clone(cursor), 0)
		}
		for row, err := range rd.Scan(rg) {
			if err != nil {
				return err
			}
			f := storedFact{key: bytes.Clone(row.Key)}
			if err := decode(row, &f.factRow); err != nil {
				return err
			}
			p := parts(row.Key)
			f.repo, f.subject, f.referrer = p[0], digest.Digest(p[1]), digest.Digest(p[2])
			if page = append(page, f); len(page) == reviewPage {
				break
			}
		}
		return nil
	})
	return page, err
}

// again derives the fact anew, in the light of a trust file. When it was
// admitted does not change.
func (r *Registry) again(ctx context.Context, f storedFact, trust *verify.Trust) (derived, error) {
	stored, err := r.Manifest(ctx, access.System(), f.repo, string(f.referrer))
	if errors.Is(err, ErrManifestUnknown) || errors.Is(err, ErrNameUnknown) {
		return derived{}, nil // deleted meanwhile
	}
	if err != nil {
		return derived{}, err
	}
	m, err := parseManifest(stored.Descriptor.MediaType, stored.Body, f.referrer.Algorithm())
	if err != nil {
		return derived{}, fmt.Errorf("manifest %s: %w", f.referrer, err)
	}
	if m.subject != f.subject {
		return r.deriveLegacy(ctx, f.repo, m, f.subject, trust, f.At)
	}
	return r.derive(ctx, f.repo, m, trust, f.At)
}

// flips compares what was said with what is said now.
func (f storedFact) flips(d derived) (list []Flip) {
	if d.fact == nil {
		return nil
	}
	before, after := append([]saidRow{f.saidRow}, f.More...), append([]saidRow{d.fact.saidRow}, d.fact.More...)
	for i := range max(len(before), len(after)) {
		var b, a saidRow
		if i < len(before) {
			b = before[i]
		}
		if i < len(after) {
			a = after[i]
		}
		if b.Outcome == a.Outcome && b.Identity == a.Identity && b.Role == a.Role && b.Holder == a.Holder {
			continue
		}
		predicate := a.PredicateType
		if predicate == "" {
			predicate = b.PredicateType
		}
		list = append(list, Flip{
			Repository: f.repo, Subject: f.subject, Referrer: f.referrer, PredicateType: predicate,
			Before: Standing{b.Outcome, b.Message, b.Remedy, b.Identity, b.Role}, After: Standing{a.Outcome, a.Message, a.Remedy, a.Identity, a.Role},
		})
	}
	return list
}

// flip writes a fact that comes out otherwise, and says so in the log.
func (r *Registry) flip(ctx context.Context, f storedFact, d derived) error {
	return r.submit(ctx, func(tx *txn) error {
		if err := d.check(tx); err != nil {
			return err
		}
		var now factRow
		ok, err := load(tx, f.key, &now)
		if err != nil || !ok || now.current(d.fact.Trust) {
			return err // deleted, or flipped before a crash
		}
		for _, row := range now.Rows {
			tx.delete(row)
		}
		next := *d.fact
		next.At, next.Index = now.At, now.Index
		next.store(tx, f.repo, f.subject, f.referrer)
		tx.emit(Event{
			Kind: EventFact, Actor: access.System().ID, Repository: f.repo,
			Digests: []digest.Digest{f.referrer}, Subjects: []digest.Digest{f.subject, next.Trust},
			Artifact: next.PredicateType, Outcome: next.outcome(),
		})
		return nil
	})
}
