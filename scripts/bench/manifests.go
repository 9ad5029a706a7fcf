package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/assay-dev/assay/registry"
	"github.com/assay-dev/assay/registry/access"
	"github.com/assay-dev/assay/store/badger"
	"github.com/assay-dev/assay/store/fs"
)

// seed fills a data folder with n manifests, each under a tag of its own, by
// the registry's own code without HTTP between. referrers is how many of them
// speak of the first. A folder that is there already is taken as it is.
func (b *bench) seed(name string, n, referrers int) (data string, err error) {
	root := b.dir
	if b.keep != "" {
		root = b.keep
	}
	data = filepath.Join(root, fmt.Sprintf("%s-%d", name, n))
	if _, err := os.Stat(data); err == nil {
		return data, nil
	}
	making := data + ".making" // goes on where it was interrupted
	if err := os.MkdirAll(making, 0o755); err != nil {
		return "", err
	}
	start := time.Now()
	if err := seedInto(b.ctx, making, n, referrers); err != nil {
		return "", fmt.Errorf("making %d manifests: %w", n, err)
	}
	b.note("made %d manifests in %v", n, time.Since(start).Round(time.Second))
	return data, os.Rename(making, data)
}

func seedInto(ctx context.Context, dir string, n, referrers int) (err error) {
	id, err := registry.LoadIdentity(filepath.Join(dir, "identity"))
	if err != nil {
		return err
	}
	db, err := badger.Open(filepath.Join(dir, "db"), badger.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	blobs, err := fs.Open(filepath.Join(dir, "blobs"), fs.Options{})
	if err != nil {
		return err
	}
	r, err := registry.Open(ctx, registry.Options{DB: db, Blobs: blobs, Identity: id})
	if err != nil {
		return err
	}
	defer r.Close()
	layer, config := bytes.Repeat([]byte("x"), 1*kib), []byte("{}")
	for _, data := range [][]byte{layer, config} {
		u, err := r.StartUpload(ctx, access.System(), "bench/many", registry.StartUpload{})
		if err != nil {
			return err
		}
		if _, err := r.FinishUpload(ctx, access.System(), "bench/many", u.ID, registry.Chunk{Body: bytes.NewReader(data), Size: int64(len(data))}, digest.FromBytes(data)); err != nil {
			return err
		}
	}
	l, c := thing{digestOf(layer), len(layer)}, thing{digestOf(config), len(config)}
	first := manifestOf(c, l, nil, "first")
	put := func(reference string, body []byte) error {
		_, err := r.PutManifest(ctx, access.System(), "bench/many", registry.PutManifest{Reference: reference, MediaType: manifestType, Body: body})
		return err
	}
	if err := put("first", first); err != nil {
		return err
	}
	const writers = 512 // share commits
	var next atomic.Int64
	made := filepath.Join(dir, "made")
	if raw, err := os.ReadFile(made); err == nil {
		n, _ := strconv.ParseInt(string(raw), 10, 64)
		next.Store(max(0, n-writers)) // putting the same again changes nothing
	}
	errs := make([]error, writers)
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for {
				i := next.Add(1)
				if i > int64(n) || ctx.Err() != nil {
					return
				}
				var subject *thing
				reference := tagOf(int(i) - 1)
				body := manifestOf(c, l, nil, reference)
				if i <= int64(referrers) {
					subject = &thing{digestOf(first), len(first)}
					body = manifestOf(c, l, subject, reference)
				}
				if errs[w] = put(reference, body); errs[w] != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(append(errs, ctx.Err(), os.WriteFile(made, []byte(strconv.FormatInt(min(next.Load(), int64(n)), 10)), 0o644))...)
}

func tagOf(i int) string { return fmt.Sprintf("tag-%07d", i) }

// manifestRows: HEAD and GET by tag.
func manifestRows(b *bench) error {
	n, during := 100_000, 3*time.Second
	if b.quick {
		n, during = 10_000, time.Second
	}
	data, err := b.seed("manifests", n, min(20_000, n))
	if err != nil {
		return err
	}
	s, err := b.startAssay(data)
	if err != nil {
		return err
	}
	defer s.stop()
	one := manifestOf(thing{digestOf(nil), 2}, thing{digestOf(nil), 1 * kib}, nil, tagOf(0))
	bare, err := b.startBytesServer(filepath.Join(b.dir, "manifest"), one)
	if err != nil {
		return err
	}
	defer bare.discard()
	const perSecond, conns = 5000, 16
	path := func(i int) string { return "/v2/bench/many/manifests/" + tagOf(i%n) }
	for _, method := range []string{"HEAD", "GET"} {
		servers := []*process{bare, s}
		p99, cost := make([][]time.Duration, len(servers)), make([][]time.Duration, len(servers))
		for run := range b.runs + 1 {
			for i, p := range servers {
				before, err := p.cpu()
				if err != nil {
					return err
				}
				took, err := hold(p.host, method, perSecond, conns, during, path)
				if err != nil {
					return err
				}
				after, err := p.cpu()
				if err != nil {
					return err
				}
				if run == 0 {
					continue // mapped tables are read from the disk once
				}
				p99[i] = append(p99[i], percentile(took, 0.99))
				cost[i] = append(cost[i], (after-before)/time.Duration(len(took)))
				b.note("%s, %s: median %v, p99 %v, p99.9 %v, of %d; %v of CPU each", method, p.name, percentile(took, 0.5), percentile(took, 0.99), percentile(took, 0.999), len(took), cost[i][run-1])
			}
		}
		limit, got := median(p99[0]), median(p99[1])
		b.row(result{
			what:     fmt.Sprintf("%s of a manifest by tag, %d tags, %d/s", method, n, perSecond),
			measured: fmt.Sprintf("p99 %.2f ms (%d µs of CPU)", got.Seconds()*1e3, median(cost[1]).Microseconds()),
			limit:    fmt.Sprintf("a bare net/http server: p99 %.2f ms (%d µs)", limit.Seconds()*1e3, median(cost[0]).Microseconds()),
			must:     "p99 < 2 ms", got: got.Seconds() * 1e3, need: 2,
		})
	}
	return nil
}

// listRows: the first byte of lists.
func listRows(b *bench) error {
	n := 100_000
	if b.quick {
		n = 10_000
	}
	data, err := b.seed("manifests", n, min(20_000, n))
	if err != nil {
		return err
	}
	s, err := b.startAssay(data)
	if err != nil {
		return err
	}
	defer s.stop()
	resp, err := http.Get("http://" + s.host + "/v2/bench/many/manifests/first")
	if err != nil {
		return err
	}
	resp.Body.Close()
	subject := resp.Header.Get("Docker-Content-Digest")
	for _, list := range []struct{ what, path string }{
		{"a page of 1,000 tags", "/v2/bench/many/tags/list?n=1000&last=" + tagOf(n/2)},
		{fmt.Sprintf("a page of %d tags", min(20_000, n)), fmt.Sprintf("/v2/bench/many/tags/list?n=%d", min(20_000, n))},
		{fmt.Sprintf("a list of %d referrers", min(20_000, n)), "/v2/bench/many/referrers/" + subject},
	} {
		var first, whole []time.Duration
		var length int64
		for range 2*b.runs + 1 {
			start := time.Now()
			resp, err := http.Get("http://" + s.host + list.path)
			if err != nil {
				return err
			}
			one := make([]byte, 1)
			if _, err := io.ReadFull(resp.Body, one); err != nil {
				return fmt.Errorf("%s: %s: %w", list.path, resp.Status, err)
			}
			first = append(first, time.Since(start))
			length, err = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if err != nil {
				return err
			}
			whole = append(whole, time.Since(start))
		}
		got := median(first)
		b.row(result{
			what: list.what + ", first byte", measured: fmt.Sprintf("%.1f ms (all %d KiB: %.0f ms)", got.Seconds()*1e3, length/kib, median(whole).Seconds()*1e3),
			must: "< 20 ms", got: got.Seconds() * 1e3, need: 20,
		})
	}
	return nil
}

// restartRows: a million manifests.
func restartRows(b *bench) error {
	n := b.many
	if b.quick {
		n = 50_000
	}
	data, err := b.seed("restart", n, 0)
	if err != nil {
		return err
	}
	var ready []time.Duration
	var memory int64
	for range b.runs {
		start := time.Now()
		s, err := b.startAssay(data)
		if err != nil {
			return err
		}
		if _, err := http.Get("http://" + s.host + "/readyz"); err != nil {
			return err
		}
		ready = append(ready, time.Since(start))
		stop := s.watch()
		_, err = hold(s.host, "GET", 2000, 32, 3*time.Second, func(i int) string { return "/v2/bench/many/manifests/" + tagOf(i%n) })
		memory = max(memory, stop())
		// As after a power cut, not as after a polite stop.
		s.cmd.Process.Kill()
		<-s.done
		if err != nil {
			return err
		}
	}
	b.note("ready after %v", ready)
	got := median(ready)
	b.row(result{
		what: fmt.Sprintf("start after a kill, %d manifests", n), measured: fmt.Sprintf("ready in %.2f s", got.Seconds()),
		must: "< 2 s", got: got.Seconds(), need: 2,
	})
	b.row(memoryRow(fmt.Sprintf("anonymous memory, %d manifests, 2000 GETs/s", n), memory))
	return nil
}

// collectRows: PUTs of manifests while a collection runs.
func collectRows(b *bench) error {
	n, during := 100_000, 5*time.Second
	if b.quick {
		n, during = 10_000, 2*time.Second
	}
	data, err := b.seed("collect", n, 0)
	if err != nil {
		return err
	}
	s, err := b.startAssay(data)
	if err != nil {
		return err
	}
	defer s.stop()
	l, c := thing{digestOf(bytes.Repeat([]byte("x"), 1*kib)), 1 * kib}, thing{digestOf([]byte("{}")), 2}
	run := time.Now().UnixNano()
	var count atomic.Int64
	puts := func() ([]time.Duration, error) {
		const conns = 4
		took, errs := make([][]time.Duration, conns), make([]error, conns)
		start := time.Now()
		var wg sync.WaitGroup
		for i := range conns {
			wg.Go(func() {
				w, err := dial(s.host)
				if err != nil {
					errs[i] = err
					return
				}
				defer w.close()
				// 50 a second each: what is measured is the wait, not the rate.
				for due := start; due.Before(start.Add(during)); due = due.Add(20 * time.Millisecond) {
					time.Sleep(time.Until(due))
					tag := fmt.Sprintf("put-%d-%d", run, count.Add(1))
					if errs[i] = w.manifest("bench/many", tag, manifestOf(c, l, nil, tag)); errs[i] != nil {
						return
					}
					took[i] = append(took[i], time.Since(due))
				}
			})
		}
		wg.Wait()
		all := slices.Concat(took...)
		slices.Sort(all)
		return all, errors.Join(errs...)
	}
	var quiet, busy []time.Duration
	for range b.runs {
		took, err := puts()
		if err != nil {
			return err
		}
		quiet = append(quiet, percentile(took, 0.99))

		ctx, stop := context.WithCancel(b.ctx)
		var collections atomic.Int64
		done := make(chan error, 1)
		go func() {
			for ctx.Err() == nil {
				req, _ := http.NewRequestWithContext(ctx, "POST", "http://"+s.host+"/api/v1/maintenance/collect", bytes.NewReader([]byte("{}")))
				req.Header.Set("Content-Type", "application/json")
				resp, err := http.DefaultClient.Do(req)
				if err != nil {
					break
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if resp.StatusCode != http.StatusOK {
					done <- fmt.Errorf("collecting: %s", resp.Status)
					return
				}
				collections.Add(1)
			}
			done <- nil
		}()
		took, err = puts()
		stop()
		if e := errors.Join(err, <-done); e != nil {
			return e
		}
		busy = append(busy, percentile(took, 0.99))
		b.note("manifest PUT p99 %v, while %d collections ran one after another %v", quiet[len(quiet)-1], collections.Load(), busy[len(busy)-1])
	}
	got, other := median(busy), median(quiet)
	b.row(result{
		what: fmt.Sprintf("manifest PUT while a collection of %d manifests runs", n), measured: fmt.Sprintf("p99 %.2f ms", got.Seconds()*1e3),
		limit: fmt.Sprintf("without it: p99 %.2f ms", other.Seconds()*1e3), must: "≤ 1.5 × it", got: got.Seconds() / other.Seconds(), need: 1.5,
	})
	return nil
}
