package registry

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/assay-dev/assay/registry/access"
	"github.com/assay-dev/assay/store"
	"github.com/assay-dev/assay/verify/attest"
)

// commitBlob makes bytes that are durable under a key the blob d of a
// repository. If the blob is stored already, the new bytes are not needed,
// and used is false. states are those of its [attest.Pieces], if they are known,
// and upload is the session whose row ends with this, if it has one.
func (r *Registry) commitBlob(ctx context.Context, actor access.Actor, repo string, d digest.Digest, bytes blobRow, states []byte, upload string) (used bool, err error) {
	var damaged store.Key
	err = r.submit(ctx, func(tx *txn) error {
		damaged = ""
		var now blobRow
		known, err := load(tx, key("blob", string(d)), &now)
		if err != nil {
			return err
		}
		used = !known
		if used {
			tx.put(key("blob", string(d)), bytes)
			var heals bool
			if heals, damaged, err = healed(tx, d); err != nil {
				return err
			}
			if heals {
				tx.emit(Event{Kind: EventHeal, Actor: actor.ID, Request: actor.RequestID, Repository: repo, Digests: []digest.Digest{d}})
			}
		}
		if bytes.Size > attest.PieceSize {
			putStates(tx, "states", string(d), states, 0)
		}
		link(tx, repo, d)
		if upload != "" {
			return dropUploadRow(tx, upload)
		}
		return nil
	})
	if err == nil && damaged != "" {
		r.removeBlob(damaged)
	}
	// An error leaves it open whether the row was written; bytes that no row
	// names are collected, so they are kept here.
	return used, err
}

// link gives a repository a blob.
func link(tx *txn, repo string, d digest.Digest) {
	tx.put(key("linked", repo, string(d)), linkedRow{At: tx.now})
	tx.set(key("linkedin", string(d), repo), nil)
}

// MountBlob gives a repository a blob of another one without sending it
// again. from may be "": any repository that the actor may read. A blob that
// is not to be had is ErrBlobUnknown, whether it exists or not.
func (r *Registry) MountBlob(ctx context.Context, actor access.Actor, repo string, d digest.Digest, from string) error {
	if err := checkName(repo); err != nil {
		return err
	}
	if err := actor.Authorize(access.Push, repo); err != nil {
		return err
	}
	if err := checkDigest(d); err != nil {
		return err
	}
	r.leases.renew(repo, r.clock())
	unknown := fmt.Errorf("%w: %s", ErrBlobUnknown, d)
	if from != "" && (checkName(from) != nil || actor.Authorize(access.Pull, from) != nil) {
		return unknown
	}
	return r.submit(ctx, func(tx *txn) error {
		if ok, err := exists(tx, key("blob", string(d))); err != nil || !ok {
			return orElse(err, unknown)
		}
		if from != "" {
			if ok, err := exists(tx, key("linked", from, string(d))); err != nil || !ok {
				return orElse(err, unknown)
			}
			link(tx, repo, d)
			return nil
		}
		rg := under("linkedin", string(d))
		rg.KeysOnly = true
		for row, err := range tx.Scan(rg) {
			if err != nil {
				return err
			}
			if actor.Authorize(access.Pull, parts(row.Key)[1]) == nil {
				link(tx, repo, d)
				return nil
			}
		}
		return unknown
	})
}

func orElse(err, otherwise error) error {
	if err != nil {
		return err
	}
	return otherwise
}

// DeleteBlob removes a blob from a repository. One that a manifest there
// names is in use and stays.
func (r *Registry) DeleteBlob(ctx context.Context, actor access.Actor, repo string, d digest.Digest) error {
	if err := checkName(repo); err != nil {
		return err
	}
	if err := actor.Authorize(access.Delete, repo); err != nil {
		return err
	}
	if err := checkDigest(d); err != nil {
		return err
	}
	var garbage store.Key
	err := r.submit(ctx, func(tx *txn) error {
		garbage = ""
		if ok, err := exists(tx, key("linked", repo, string(d))); err != nil || !ok {
			return orElse(err, fmt.Errorf("%w: %s has no %s", ErrBlobUnknown, repo, d))
		}
		user, err := firstUser(tx, repo, d)
		if err != nil {
			return err
		}
		if user != "" {
			return fmt.Errorf("%w: manifest %s names it; delete that first", ErrBlobInUse, user)
		}
		if garbage, err = unlink(tx, repo, d); err != nil {
			return err
		}
		tx.emit(Event{
			Kind: EventBlobDelete, Actor: actor.ID, Request: actor.RequestID, Repository: repo,
			Digests: []digest.Digest{d},
		})
		return nil
	})
	if err == nil && garbage != "" {
		r.removeBlob(garbage)
	}
	return err
}

// writeBlob stores data under a new key, durably.
func (r *Registry) writeBlob(ctx context.Context, data []byte) (store.Key, error) {
	w, err := r.blobs.Create(ctx, int64(len(data)))
	if err != nil {
		return "", err
	}
	if _, err = w.Write(data); err == nil {
		err = w.Commit()
	}
	if err != nil {
		w.Close()
		r.removeBlob(w.Key())
		return "", fmt.Errorf("storing %d bytes: %w", len(data), err)
	}
	return w.Key(), nil
}

// removeBlob removes bytes that no row names, once nobody reads an older state
// that names them. If that fails they are collected later, so it is only
// logged.
func (r *Registry) removeBlob(k store.Key) {
	if r.pins.postpone(k) {
		return
	}
	if err := r.blobs.Remove(context.Background(), k); err != nil {
		r.log.Warn("removing bytes that are not needed", "key", k, "error", err)
	}
}

// removeDuplicate removes bytes that turned out to be stored already. A file
// system may need half a second to free a GiB: who pushed so much does not
// wait for it, unless many are being freed.
func (r *Registry) removeDuplicate(k store.Key, size int64) {
	if size > attest.PieceSize {
		select {
		case r.removing <- struct{}{}:
			r.removals.Go(func() {
				r.removeBlob(k)
				<-r.removing
			})
			return
		default:
		}
	}
	r.removeBlob(k)
}

// pins keep bytes in storage that no row names any more, while somebody reads
// what an older state of the rows names.
type pins struct {
	mu        sync.Mutex
	held      int         // guarded by mu
	postponed []store.Key // guarded by mu
}

// postpone reports whether the removal of bytes has to wait.
func (p *pins) postpone(k store.Key) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held > 0 {
		p.postponed = append(p.postponed, k)
	}
	return p.held > 0
}

// all are the keys whose removal waits.
func (p *pins) all() []store.Key {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.postponed)
}

// pin keeps all bytes that rows name now until the caller calls unpin.
func (r *Registry) pin() (unpin func()) {
	p := &r.pins
	p.mu.Lock()
	p.held++
	p.mu.Unlock()
	return func() {
		p.mu.Lock()
		p.held--
		var now []store.Key
		if p.held == 0 {
			now, p.postponed = p.postponed, nil
		}
		p.mu.Unlock()
		for _, k := range now {
			r.removeBlob(k)
		}
	}
}
