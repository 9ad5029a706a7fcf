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
	d, err := r.document(ctx, access.System(), documentTrust)
	if err != nil {
		return nil, err
	}
	if d.LogIndex < 0 {
		return verify.NoTrust(), nil
	}
	return verify.ParseTrust(d.Body)
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
