package registry

import (
	"context"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/assay-dev/assay/registry/access"
	"github.com/assay-dev/assay/store"
	"github.com/assay-dev/assay/verify"
	"github.com/assay-dev/assay/verify/gate"
)

// Kinds of documents the server itself is governed by.
const (
	documentTrust  = "trust"
	documentPolicy = "policy"
)

const maxDocument = 128 << 10

// A Document is a version of the trust file or the policy.
type Document struct {
	Body     []byte        // as it was applied; nil for the built-in one
	Digest   digest.Digest // of what it means, whatever its layout
	At       time.Time
	LogIndex int64 // -1 for the built-in one
}

type documentRow struct {
	Body   []byte        `json:"body"`
	Digest digest.Digest `json:"digest"`
	At     time.Time     `json:"at"`
}

// currentDocument returns the newest version of a kind: before the first, the
// trust file trusts nobody and the policy requires everything.
func currentDocument(rd store.Reader, kind string) (Document, error) {
	rg := under("document", kind)
	rg.Reverse = true
	for row, err := range rd.Scan(rg) {
		if err != nil {
			return Document{}, err
		}
		var d documentRow
		if err := decode(row, &d); err != nil {
			return Document{}, err
		}
		return Document{Body: d.Body, Digest: d.Digest, At: d.At, LogIndex: lastNumber(row.Key)}, nil
	}
	builtIn := verify.NoTrust().Digest()
	if kind == documentPolicy {
		builtIn = gate.DefaultPolicy().Digest()
	}
	return Document{Digest: builtIn, LogIndex: -1}, nil
}

func (r *Registry) document(ctx context.Context, actor access.Actor, kind string) (d Document, err error) {
	if err := actor.Authorize(access.Audit, ""); err != nil {
		return Document{}, err
	}
	err = r.view(ctx, func(rd store.Reader) error {
		d, err = currentDocument(rd, kind)
		return err
	})
	return d, err
}

// setDocument puts a document in force, of whose actor that was asked before.
func (r *Registry) setDocument(ctx context.Context, actor access.Actor, kind, event string, body []byte, meaning digest.Digest) (d Document, err error) {
	if len(body) > maxDocument {
		return Document{}, fmt.Errorf("%w: %s file of %d bytes, at most %d are kept", ErrDocumentInvalid, kind, len(body), maxDocument)
	}
	err = r.submit(ctx, func(tx *txn) error {
		now, err := currentDocument(tx, kind)
		if err != nil {
			return err
		}
		if now.Digest == meaning && now.LogIndex >= 0 {
			d = now
			return nil
		}
		d = Document{Body: body, Digest: meaning, At: tx.now, LogIndex: tx.index}
		tx.put(key("document", kind, number(tx.index)), documentRow{body, meaning, tx.now})
		tx.emit(Event{Kind: event, Actor: actor.ID, Request: actor.RequestID, Digests: []digest.Digest{meaning}, Subjects: []digest.Digest{now.Digest}})
		return nil
	})
	return d, err
}

// Trust returns the trust file in force.
func (r *Registry) Trust(ctx context.Context, actor access.Actor) (Document, error) {
	return r.document(ctx, actor, documentTrust)
}

// SetTrust puts a trust file (YAML) in force. Statements that are pushed from
// now on, and decisions that are asked for, are seen in its light; what was
// pushed before is verified again by [Registry.ReviewTrust].
func (r *Registry) SetTrust(ctx context.Context, actor access.Actor, body []byte) (Document, error) {
	if err := actor.Authorize(access.Operate, ""); err != nil {
		return Document{}, err
	}
	t, err := verify.ParseTrust(body)
	if err != nil {
		return Document{}, fmt.Errorf("%w: %w", ErrDocumentInvalid, err)
	}
	d, err := r.setDocument(ctx, actor, documentTrust, EventTrust, body, t.Digest())
	if err == nil {
		select {
		case r.reviews <- struct{}{}:
		default: // it knows already
		}
	}
	return d, err
}

// Policy returns the policy in force.
func (r *Registry) Policy(ctx context.Context, actor access.Actor) (Document, error) {
	return r.document(ctx, actor, documentPolicy)
}

// SetPolicy puts a policy file (YAML) in force.
func (r *Registry) SetPolicy(ctx context.Context, actor access.Actor, body []byte) (Document, error) {
	if err := actor.Authorize(access.Operate, ""); err != nil {
		return Document{}, err
	}
	p, err := gate.ParsePolicy(body)
	if err != nil {
		return Document{}, fmt.Errorf("%w: %w", ErrDocumentInvalid, err)
	}
	return r.setDocument(ctx, actor, documentPolicy, EventPolicy, body, p.Digest())
}

// trust returns the trust file in force, parsed.
func (r *Registry) trust(ctx context.Context) (*verify.Trust, error) {
	t, _, err := r.trustInForce(ctx)
	return t, err
}

// trustInForce returns it with the log leaf that put it in force; -1 for the
// built-in one.
func (r *Registry) trustInForce(ctx context.Context) (t *verify.Trust, index int64, err error) {
	var d Document
	err = r.view(ctx, func(rd store.Reader) (err error) {
		if index, err = currentIndex(rd, documentTrust); err != nil || index < 0 {
			return err
		}
		// Reading and parsing take longer than what most pushes need it for.
		if last := r.parsed.Load(); last != nil && last.index == index {
			t = last.trust
			return nil
		}
		d, err = currentDocument(rd, documentTrust)
		return err
	})
	switch {
	case err != nil || t != nil:
		return t, index, err
	case index < 0:
		return verify.NoTrust(), index, nil
	}
	if t, err = verify.ParseTrust(d.Body); err == nil {
		r.parsed.Store(&parsedTrust{d.LogIndex, t})
	}
	return t, d.LogIndex, err
}

// currentIndex returns the log leaf that put the newest version of a kind in
// force; -1 before the first.
func currentIndex(rd store.Reader, kind string) (int64, error) {
	rg := under("document", kind)
	rg.Reverse, rg.KeysOnly = true, true
	for row, err := range rd.Scan(rg) {
		if err != nil {
			return 0, err
		}
		return lastNumber(row.Key), nil
	}
	return -1, nil
}

// A parsedTrust is a version of the trust file, by the log leaf that put it in
// force.
type parsedTrust struct {
	index int64
	trust *verify.Trust
}

// policy returns the policy in force, parsed.
func (r *Registry) policy(ctx context.Context) (gate.Policy, error) {
	d, err := r.document(ctx, access.System(), documentPolicy)
	if err != nil {
		return gate.Policy{}, err
	}
	if d.LogIndex < 0 {
		return gate.DefaultPolicy(), nil
	}
	return gate.ParsePolicy(d.Body)
}
