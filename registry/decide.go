package registry

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/assay-dev/assay/registry/access"
	"github.com/assay-dev/assay/store"
	"github.com/assay-dev/assay/verify"
	"github.com/assay-dev/assay/verify/attest"
	"github.com/assay-dev/assay/verify/gate"
)

// allowWindow is how long identical allows are counted under one leaf.
// Every deny gets its own.
const allowWindow = time.Hour

type allowedRow struct {
	Index int64     `json:"index"`
	At    time.Time `json:"at"`
	Count int64     `json:"count"`
}

// A DecisionRecord is a decision and where it was recorded.
type DecisionRecord struct {
	gate.Decision
	LogIndex int64
	Repeats  int64 // identical allows counted under the leaf, this one included
	Evidence *verify.Evidence
}

// Decide asks whether the model that a reference names may be deployed to an
// environment, now, and records the answer.
func (r *Registry) Decide(ctx context.Context, actor access.Actor, repo, reference, environment string) (DecisionRecord, error) {
	return r.decideOr(ctx, actor, repo, reference, environment, "")
}

// BreakGlass decides without the approvals that are required, and without
// those only, for an operator who says why. If they were what stood in the
// way, the allow has an event of its own kind in the log, and operators see
// it in theirs.
func (r *Registry) BreakGlass(ctx context.Context, actor access.Actor, repo, reference, environment, reason string) (DecisionRecord, error) {
	if err := actor.Authorize(access.Operate, repo); err != nil {
		return DecisionRecord{}, err
	}
	if strings.TrimSpace(reason) == "" || len(reason) > maxReason {
		return DecisionRecord{}, fmt.Errorf("%w: say in up to %d bytes why the glass is broken", ErrDocumentInvalid, maxReason)
	}
	return r.decideOr(ctx, actor, repo, reference, environment, reason)
}

// maxReason bounds the reason for breaking the glass.
const maxReason = 4 << 10

func (r *Registry) decideOr(ctx context.Context, actor access.Actor, repo, reference, environment, breakGlass string) (DecisionRecord, error) {
	model, err := r.StatManifest(ctx, actor, repo, reference)
	if err != nil {
		return DecisionRecord{}, err
	}
	if err := actor.Authorize(access.Decide, repo); err != nil {
		return DecisionRecord{}, err
	}
	if err := checkName(attest.EnvironmentRepository(environment)); err != nil {
		return DecisionRecord{}, err
	}
	for {
		rec, err := r.decide(ctx, actor, repo, model.Digest, environment, breakGlass)
		if !errors.Is(err, errTrustMoved) {
			return rec, err
		}
	}
}

func (r *Registry) decide(ctx context.Context, actor access.Actor, repo string, model digest.Digest, environment, breakGlass string) (DecisionRecord, error) {
	trust, err := r.trust(ctx)
	if err != nil {
		return DecisionRecord{}, err
	}
	policy, err := r.policy(ctx)
	if err != nil {
		return DecisionRecord{}, err
	}
	now := r.clock().UTC()
	q := gate.Question{Model: model, Repository: repo, Environment: environment, Now: now, BreakGlass: breakGlass != ""}
	switch env, err := r.Environment(ctx, access.System(), environment, AsOf{}); {
	case err == nil:
		q.EnvironmentDocument, q.Documents = env.Digest, map[digest.Digest]attest.Environment{env.Digest: env.Document}
	case !errors.Is(err, ErrUnknown):
		return DecisionRecord{}, err
	}
	withdrawn, err := r.withdrawn(ctx)
	if err != nil {
		return DecisionRecord{}, err
	}
	ev, err := verify.Gather(ctx, indexSource{r, repo}, model, verify.GatherOptions{Trust: trust, Repository: repo, Now: now, Status: verify.OwnStatus(withdrawn)})
	if err != nil {
		return DecisionRecord{}, err
	}
	for _, d := range gate.Measured(ev, environment) {
		if _, ok := q.Documents[d]; ok || q.Documents == nil {
			continue
		}
		switch old, err := r.environmentDocument(ctx, access.System(), attest.EnvironmentRepository(environment), d); {
		case err == nil:
			q.Documents[d] = old.Document
		case !errors.Is(err, ErrManifestUnknown) && !errors.Is(err, ErrDocumentInvalid):
			return DecisionRecord{}, err
		}
	}
	rec := DecisionRecord{Decision: gate.Decide(policy, ev, q), LogIndex: -1, Evidence: ev}
	body, err := rec.Bytes()
	if err != nil {
		return DecisionRecord{}, err
	}
	same, err := sameness(rec.Decision)
	if err != nil {
		return DecisionRecord{}, err
	}
	reason, reasonHash := hashReason(breakGlass)
	err = r.submit(ctx, func(tx *txn) error {
		if err := stillInForce(tx, trust.Digest(), policy.Digest()); err != nil {
			return err
		}
		var allowed allowedRow
		if rec.Allow && !rec.BreakGlass {
			if _, err := load(tx, key("allowed", same), &allowed); err != nil {
				return err
			}
			if allowed.Count > 0 && tx.now.Sub(allowed.At) < allowWindow {
				allowed.Count++
				tx.put(key("allowed", same), allowed)
				rec.LogIndex, rec.Repeats = allowed.Index, allowed.Count
				return nil
			}
			tx.put(key("allowed", same), allowedRow{tx.index, tx.now, 1})
		}
		rec.LogIndex, rec.Repeats = tx.index, 1
		tx.set(key("decision", number(tx.index)), body)
		e := Event{
			Kind: EventDecision, Actor: actor.ID, Request: actor.RequestID, Repository: repo,
			Digests: []digest.Digest{digest.FromBytes(body)}, Subjects: []digest.Digest{model},
			Environment: environment, Outcome: "deny",
		}
		if rec.Allow {
			e.Outcome = "allow"
		}
		if rec.BreakGlass {
			e.Kind, e.ReasonHash = EventBreakGlass, reasonHash
			tx.put(key("reason", number(tx.index)), reason)
		}
		if q.EnvironmentDocument != "" {
			e.Subjects = append(e.Subjects, q.EnvironmentDocument)
		}
		tx.emit(e)
		return nil
	})
	if err == nil && rec.BreakGlass {
		r.log.Warn("BREAK GLASS: a deployment was allowed without the approvals that are required",
			"actor", actor.ID, "repository", repo, "model", model, "environment", environment, "leaf", rec.LogIndex)
	}
	return rec, err
}

// sameness identifies a decision apart from when it was made.
func sameness(d gate.Decision) (string, error) {
	d.At = time.Time{}
	raw, err := attest.Marshal(d)
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:]), err
}

func stillInForce(tx *txn, trust, policy digest.Digest) error {
	t, err := currentDocument(tx, documentTrust)
	if err != nil {
		return err
	}
	p, err := currentDocument(tx, documentPolicy)
	if err != nil {
		return err
	}
	if t.Digest != trust || p.Digest != policy {
		return errTrustMoved
	}
	return nil
}

// Decision returns the canonical bytes of a decision that was recorded.
func (r *Registry) Decision(ctx context.Context, actor access.Actor, index int64) (body []byte, err error) {
	if err := actor.Authorize(access.Audit, ""); err != nil {
		return nil, err
	}
	err = r.view(ctx, func(rd store.Reader) error {
		body, err = rd.Get(key("decision", number(index)))
		if errors.Is(err, store.ErrNotFound) {
			err = fmt.Errorf("%w: log leaf %d records no decision", ErrUnknown, index)
		}
		return err
	})
	return body, err
}
