package main

import (
	"fmt"
	"path/filepath"
	"sync"
)

func memoryRow(what string, n int64) result {
	return result{what: what, measured: fmt.Sprintf("%d MiB", n/mib), must: "< 200 MiB", got: float64(n) / mib, need: 200}
}

// memoryRows: what the server holds for itself.
func memoryRows(b *bench) error {
	large, blob, pulls := int64(16*gib), int64(1*gib), 64
	if b.quick {
		large, blob = 1*gib, 256*mib
	}
	p, err := b.payload(large)
	if err != nil {
		return err
	}
	took, _, most, err := b.pushOnce(b.startAssayPlain, p)
	if err != nil {
		return err
	}
	b.note("push of %s: %.2f GiB/s", size(large), rate(large, took))
	b.row(memoryRow("anonymous memory, push of "+size(large), most))

	if p, err = b.payload(blob); err != nil {
		return err
	}
	s, err := b.startAssay(filepath.Join(b.dir, "pulls"))
	if err != nil {
		return err
	}
	defer s.discard()
	w, err := dial(s.host)
	if err != nil {
		return err
	}
	defer w.close()
	if _, err := w.push("bench/model", p); err != nil {
		return err
	}
	stop := s.watch()
	errs := make([]error, pulls)
	var wg sync.WaitGroup
	for i := range pulls {
		wg.Go(func() {
			w, err := dial(s.host)
			if err != nil {
				errs[i] = err
				return
			}
			defer w.close()
			errs[i] = w.pull("/v2/bench/model/blobs/"+p.digest, -1, blob)
		})
	}
	wg.Wait()
	most = stop()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	b.row(memoryRow(fmt.Sprintf("anonymous memory, %d pulls of %s at once", pulls, size(blob)), most))
	return nil
}
