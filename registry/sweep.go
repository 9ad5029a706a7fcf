package registry

import (
	"context"
	"time"

	"github.com/assay-dev/assay/store"
)

// sweep removes uploads that have rested too long, and bytes that no row and
// no running upload names. When the registry opens, every upload without a
// row is one that a crash ended; later, only bytes that have rested as long
// as an upload may are taken for forgotten.
func (r *Registry) sweep(ctx context.Context, opening bool) error {
	now := r.clock()
	known := map[store.Key]bool{}
	var expired []string
	err := r.view(ctx, func(rd store.Reader) error {
		for row, err := range rd.Scan(under("upload")) {
			if err != nil {
				return err
			}
			var u uploadRow
			if err := decode(row, &u); err != nil {
				return err
			}
			if now.Sub(u.At) > r.ttl {
				expired = append(expired, parts(row.Key)[0])
				continue
			}
			known[u.Key] = true
		}
		for row, err := range rd.Scan(under("blob")) {
			if err != nil {
				return err
			}
			var b blobRow
			if err := decode(row, &b); err != nil {
				return err
			}
			known[b.Key] = true
		}
		for row, err := range rd.Scan(under("manifest")) {
			if err != nil {
				return err
			}
			var m manifestRow
			if err := decode(row, &m); err != nil {
				return err
			}
			known[m.Blob] = true
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, s := range r.uploads.all() {
		s.mu.Lock()
		if s.writer != nil {
			known[s.writer.Key()] = true
		}
		if !s.gone && now.Sub(s.active) > r.ttl {
			r.log.Info("dropping an upload that has rested too long", "upload", s.id, "repository", s.repo, "bytes", s.offset)
			r.drop(s)
		}
		s.mu.Unlock()
	}
	for _, id := range expired {
		r.uploads.mu.Lock()
		_, running := r.uploads.sessions[id]
		r.uploads.mu.Unlock()
		if running {
			continue // its row is old, it is not
		}
		if err := r.submit(ctx, func(tx *txn) error {
			tx.delete(key("upload", id))
			return nil
		}); err != nil {
			return err
		}
	}
	for info, err := range r.blobs.List(ctx) {
		if err != nil {
			return err
		}
		if known[info.Key] || !opening && now.Sub(info.Modified) <= r.ttl {
			continue
		}
		r.log.Info("removing bytes that nothing names", "key", info.Key, "bytes", info.Size)
		if err := r.blobs.Remove(ctx, info.Key); err != nil {
			return err
		}
	}
	return nil
}

func (r *Registry) sweepForever(ctx context.Context) {
	tick := time.NewTicker(time.Hour)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := r.sweep(ctx, false); err != nil && ctx.Err() == nil {
				r.log.Error("clearing up", "error", err)
			}
		}
	}
}
