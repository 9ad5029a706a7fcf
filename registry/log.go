package registry

import (
	"context"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"

	"github.com/assay-dev/assay/registry/access"
	"github.com/assay-dev/assay/registry/tlog"
	"github.com/assay-dev/assay/store"
)

// A Leaf is an entry of the log.
type Leaf struct {
	Index int64
	Event Event
	Bytes []byte // canonical JSON; what is hashed
}

// tree returns the size and root of the log in one state.
func tree(rd store.Reader) (tlog.Tree, error) {
	var log logRow
	if _, err := load(rd, key("log"), &log); err != nil {
		return tlog.Tree{}, err
	}
	root, err := tlog.TreeHash(log.Size, hashesOf(rd))
	return tlog.Tree{N: log.Size, Hash: root}, err
}

// Checkpoint returns the signed state of the log (C2SP tlog-checkpoint).
func (r *Registry) Checkpoint(ctx context.Context, actor access.Actor) (note []byte, err error) {
	if err := actor.Authorize(access.Audit, ""); err != nil {
		return nil, err
	}
	err = r.view(ctx, func(rd store.Reader) error {
		t, err := tree(rd)
		if err == nil {
			note, err = r.identity.Log.Checkpoint(t)
		}
		return err
	})
	return note, err
}

// LogKey is the public key of the log, as a signed note's verifier key.
func (r *Registry) LogKey() string { return r.identity.Log.VerifierKey() }

// LogOrigin is the name of the log.
func (r *Registry) LogOrigin() string { return r.identity.Log.Origin() }

// Leaf returns an entry of the log.
func (r *Registry) Leaf(ctx context.Context, actor access.Actor, index int64) (l Leaf, err error) {
	if err := actor.Authorize(access.Audit, ""); err != nil {
		return Leaf{}, err
	}
	err = r.view(ctx, func(rd store.Reader) (err error) {
		l, err = leafAt(rd, index)
		return err
	})
	return l, err
}

func leafAt(rd store.Reader, index int64) (Leaf, error) {
	raw, err := rd.Get(key("leaf", number(index)))
	if errors.Is(err, store.ErrNotFound) {
		return Leaf{}, fmt.Errorf("%w: the log has no leaf %d", ErrUnknown, index)
	}
	if err != nil {
		return Leaf{}, err
	}
	e, err := ParseLeaf(raw)
	return Leaf{Index: index, Event: e, Bytes: raw}, err
}

// LeavesAbout returns the indexes of all leaves that name a digest, the
// oldest first.
func (r *Registry) LeavesAbout(ctx context.Context, actor access.Actor, d digest.Digest) (list []int64, err error) {
	if err := actor.Authorize(access.Audit, ""); err != nil {
		return nil, err
	}
	if err := checkDigest(d); err != nil {
		return nil, err
	}
	err = r.view(ctx, func(rd store.Reader) error {
		rg := under("about", string(d))
		rg.KeysOnly = true
		for row, err := range rd.Scan(rg) {
			if err != nil {
				return err
			}
			list = append(list, lastNumber(row.Key))
		}
		return nil
	})
	return list, err
}

// InclusionProof returns a self-contained proof (C2SP tlog-proof, with the
// leaf inside) that a leaf is in the log.
func (r *Registry) InclusionProof(ctx context.Context, actor access.Actor, index int64) (proof []byte, err error) {
	if err := actor.Authorize(access.Audit, ""); err != nil {
		return nil, err
	}
	err = r.view(ctx, func(rd store.Reader) error {
		l, err := leafAt(rd, index)
		if err != nil {
			return err
		}
		t, err := tree(rd)
		if err != nil {
			return err
		}
		checkpoint, err := r.identity.Log.Checkpoint(t)
		if err != nil {
			return err
		}
		proof, err = tlog.Prove(l.Bytes, index, t, checkpoint, hashesOf(rd))
		return err
	})
	return proof, err
}

// Tile returns a tile or an entry bundle of the log (C2SP tlog-tiles).
func (r *Registry) Tile(ctx context.Context, actor access.Actor, p tlog.TilePath) (data []byte, err error) {
	if err := actor.Authorize(access.Audit, ""); err != nil {
		return nil, err
	}
	err = r.view(ctx, func(rd store.Reader) error {
		var log logRow
		if _, err := load(rd, key("log"), &log); err != nil {
			return err
		}
		if !p.Entries {
			data, err = tlog.Tile(p, log.Size, hashesOf(rd))
			if errors.Is(err, tlog.ErrNoTile) {
				err = fmt.Errorf("%w: %w", ErrUnknown, err)
			}
			return err
		}
		first := p.Index * tlog.TileWidth
		for i := first; i < first+int64(p.Width); i++ {
			raw, err := rd.Get(key("leaf", number(i)))
			if errors.Is(err, store.ErrNotFound) {
				return fmt.Errorf("%w: the log has no leaf %d yet", ErrUnknown, i)
			}
			if err != nil {
				return err
			}
			data = tlog.AppendEntry(data, raw)
		}
		return nil
	})
	return data, err
}
