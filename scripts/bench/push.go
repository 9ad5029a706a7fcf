package main

import (
	"fmt"
	"path/filepath"
	"sync"
	"time"
)

// pushOnce starts a server on an empty folder, pushes payloads to it at once,
// each over its own connection into its own repository, and returns the time and
// the server's processor time.
func (b *bench) pushOnce(start func(string) (*process, error), payloads ...*payload) (took, cpu time.Duration, memory int64, err error) {
	server, err := start(filepath.Join(b.dir, "server"))
	if err != nil {
		return 0, 0, 0, err
	}
	defer server.discard()
	wires := make([]*wire, len(payloads))
	for i := range wires {
		if wires[i], err = dial(server.host); err != nil {
			return 0, 0, 0, err
		}
		defer wires[i].close()
		if _, err := wires[i].blob(fmt.Sprintf("bench/warm-%d", i), []byte(fmt.Sprint("warm", i))); err != nil {
			return 0, 0, 0, err
		}
	}
	settle()
	before, err := server.cpu()
	if err != nil {
		return 0, 0, 0, err
	}
	stop := server.watch()
	begin := time.Now()
	var wg sync.WaitGroup
	errs := make([]error, len(payloads))
	for i, w := range wires {
		wg.Go(func() { _, errs[i] = w.push(fmt.Sprintf("bench/model-%d", i), payloads[i]) })
	}
	wg.Wait()
	took = time.Since(begin)
	memory = stop()
	after, err := server.cpu()
	for _, e := range errs {
		if e != nil {
			return 0, 0, 0, fmt.Errorf("%s: %w", server.name, e)
		}
	}
	return took, after - before, memory, err
}

func (b *bench) startAssayPlain(data string) (*process, error) { return b.startAssay(data) }

// disk is the faster of two ways to write payloads at once, each to a file of
// its own, and sync them.
func (b *bench) disk(payloads ...*payload) (time.Duration, error) {
	buffered, err := writing(b.dir, (*payload).writeFile, payloads...)
	if err != nil {
		return 0, err
	}
	direct, err := writing(b.dir, (*payload).writeDirect, payloads...)
	if err != nil {
		return buffered, nil // not every file system can
	}
	return min(buffered, direct), nil
}

// pushRows: one stream, one PUT, durable.
func pushRows(b *bench) error { return b.pushRows(1*gib, 256*mib) }

// largePushRows: the same of a blob that is no small part of the memory.
func largePushRows(b *bench) error { return b.pushRows(8*gib, 512*mib) }

func (b *bench) pushRows(n, quick int64) error {
	if b.quick {
		n = quick
	}
	p, err := b.payload(n)
	if err != nil {
		return err
	}
	runs := b.runs
	if n > 4*gib {
		runs = min(runs, 3)
	}
	var hash, hashCPU, receive, disk, ours, oursCPU, theirs, theirsCPU []time.Duration
	err = inTurns(runs,
		func() error {
			took, cpu := p.hashing()
			hash, hashCPU = append(hash, took), append(hashCPU, cpu)
			b.note("%s: hash %v", size(n), took)
			return nil
		},
		func() error {
			_, cpu, err := b.receiving(false, p)
			receive = append(receive, cpu)
			b.note("%s: receive and hash %v of CPU", size(n), cpu)
			return err
		},
		func() error {
			took, err := b.disk(p)
			disk = append(disk, took)
			b.note("%s: disk %v", size(n), took)
			return err
		},
		func() error {
			took, cpu, _, err := b.pushOnce(b.startAssayPlain, p)
			ours, oursCPU = append(ours, took), append(oursCPU, cpu)
			b.note("%s: assay %v, %v of CPU", size(n), took, cpu)
			return err
		},
		func() error {
			took, cpu, _, err := b.pushOnce(b.startOther, p)
			theirs, theirsCPU = append(theirs, took), append(theirsCPU, cpu)
			b.note("%s: distribution %v, %v of CPU", size(n), took, cpu)
			return err
		},
	)
	if err != nil {
		return err
	}
	limit, name := median(hash), "SHA-256 by one core"
	if d := median(disk); d > limit {
		limit, name = d, "the disk"
	}
	got, other := median(ours), median(theirs)
	b.row(result{
		what:     "push " + size(n) + ", one PUT, durable",
		measured: fmt.Sprintf("%.2f GiB/s", rate(n, got)), limit: fmt.Sprintf("%s: %.2f GiB/s", name, rate(n, limit)),
		must: "≥ 0.60 of it", got: limit.Seconds() / got.Seconds(), need: 0.6, atLeast: true,
	})
	b.row(result{
		what: "the same", measured: fmt.Sprintf("%.2f GiB/s", rate(n, got)), limit: fmt.Sprintf("distribution: %.2f GiB/s", rate(n, other)),
		must: "faster", got: other.Seconds() / got.Seconds(), need: 1, atLeast: true,
	})
	perGiB := func(d time.Duration) string { return fmt.Sprintf("%.2f s/GiB", d.Seconds()/float64(n)*gib) }
	b.row(result{
		what: "server CPU of that push", measured: perGiB(median(oursCPU)), limit: "SHA-256 in memory: " + perGiB(median(hashCPU)),
		must: "≤ 1.25 × it", got: median(oursCPU).Seconds() / median(hashCPU).Seconds(), need: 1.25,
	})
	b.row(result{
		what: "the same", measured: perGiB(median(oursCPU)), limit: "receive from a socket and hash: " + perGiB(median(receive)) + "; distribution: " + perGiB(median(theirsCPU)),
		must: "≤ 1.25 × the first", got: median(oursCPU).Seconds() / median(receive).Seconds(), need: 1.25,
	})
	return nil
}

// parallelPushRow: four blobs at once.
func parallelPushRow(b *bench) error {
	n := int64(1 * gib)
	if b.quick {
		n = 256 * mib
	}
	const streams = 4
	payloads, err := b.distinct(streams, n)
	if err != nil {
		return err
	}
	p := payloads[0]
	var hash, both, receive, all, disk, ours []time.Duration
	timed := func(what string, list *[]time.Duration, f func() (time.Duration, error)) func() error {
		return func() error {
			took, err := f()
			*list = append(*list, took)
			b.note("%d × %s: %s %v", streams, size(n), what, took)
			return err
		}
	}
	err = inTurns(b.runs,
		timed("hash", &hash, func() (time.Duration, error) { return p.hashingAll() * streams, nil }),
		// The same files at once, as the registry has to keep them.
		timed("write", &disk, func() (time.Duration, error) { return b.disk(payloads...) }),
		timed("hash and write", &both, func() (time.Duration, error) {
			return writing(b.dir, (*payload).hashAndWrite, payloads...)
		}),
		timed("receive and hash", &receive, func() (time.Duration, error) {
			took, _, err := b.receiving(false, payloads...)
			return took, err
		}),
		timed("receive, hash and write", &all, func() (time.Duration, error) {
			took, _, err := b.receiving(true, payloads...)
			return took, err
		}),
		timed("assay", &ours, func() (time.Duration, error) {
			took, _, _, err := b.pushOnce(b.startAssayPlain, payloads...)
			return took, err
		}),
	)
	if err != nil {
		return err
	}
	limit, name := median(hash), "SHA-256 by all cores"
	if d := median(disk); d > limit {
		limit, name = d, "the disk"
	}
	got := median(ours)
	b.row(result{
		what:     "push 4 × " + size(n) + " at once, durable",
		measured: fmt.Sprintf("%.2f GiB/s", rate(streams*n, got)), limit: fmt.Sprintf("%s: %.2f GiB/s", name, rate(streams*n, limit)),
		must: "≥ 0.80 of it", got: limit.Seconds() / got.Seconds(), need: 0.8, atLeast: true,
	})
	// What this machine has left for it: hashing and writing take from each other,
	// and clients and server share the cores.
	bare := func(took []time.Duration) float64 { return rate(streams*n, median(took)) }
	b.row(result{
		what: "the same", measured: fmt.Sprintf("%.2f GiB/s", rate(streams*n, got)),
		limit: fmt.Sprintf("received, hashed, written and synced by a bare program: %.2f GiB/s (received and hashed: %.2f; hashed and written: %.2f)", bare(all), bare(receive), bare(both)),
		must:  "≥ 0.90 of the first", got: median(all).Seconds() / got.Seconds(), need: 0.9, atLeast: true,
	})
	return nil
}
