package main

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// artifact pushes a small artifact: a layer of 1 KiB, a config, a manifest
// under a tag. What is in it is new each time.
func (w *wire) artifact(repo, tag string) error {
	layer := make([]byte, 1*kib)
	rand.Read(layer)
	config := fmt.Appendf(nil, `{"created by":"bench","tag":%q,"of":%q}`, tag, digestOf(layer))
	ld, err := w.blob(repo, layer)
	if err != nil {
		return err
	}
	cd, err := w.blob(repo, config)
	if err != nil {
		return err
	}
	return w.manifest(repo, tag, manifestOf(thing{cd, len(config)}, thing{ld, len(layer)}, nil, tag))
}

// artifacts pushes small artifacts from many clients at once, until the time
// is over or there are so many, and returns how many were acknowledged.
func artifacts(host string, clients, most int, during time.Duration) (int, time.Duration, error) {
	var next, done atomic.Int64
	errs := make([]error, clients)
	var wg sync.WaitGroup
	settle()
	start := time.Now()
	for c := range clients {
		wg.Go(func() {
			w, err := dial(host)
			if err != nil {
				errs[c] = err
				return
			}
			defer w.close()
			for time.Since(start) < during {
				n := next.Add(1)
				if n > int64(most) {
					return
				}
				if errs[c] = w.artifact(fmt.Sprintf("bench/small-%d", c), fmt.Sprintf("t%d", n)); errs[c] != nil {
					return
				}
				done.Add(1)
			}
		})
	}
	wg.Wait()
	took := time.Since(start)
	for _, err := range errs {
		if err != nil {
			return 0, 0, err
		}
	}
	return int(done.Load()), took, nil
}

// smallRows: small artifacts, and how many syncs they cost.
func smallRows(b *bench) error {
	const clients = 16
	during := 4 * time.Second
	if b.quick {
		during = time.Second
	}
	var ours, theirs []float64
	for i := range b.runs {
		for _, s := range []struct {
			start func(string) (*process, error)
			rates *[]float64
		}{{b.startAssayPlain, &ours}, {b.startOther, &theirs}} {
			p, err := s.start(filepath.Join(b.dir, "small"))
			if err != nil {
				return err
			}
			n, took, err := artifacts(p.host, clients, 1<<30, during)
			p.discard()
			if err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			*s.rates = append(*s.rates, float64(n)/took.Seconds())
		}
		b.note("small artifacts: assay %.0f/s, distribution %.0f/s", ours[i], theirs[i])
	}
	got, other := median(ours), median(theirs)
	b.row(result{
		what: "small artifacts, 16 clients, durable", measured: fmt.Sprintf("%.0f/s", got), limit: fmt.Sprintf("distribution: %.0f/s", other),
		must: "≥ 5 × it", got: got / other, need: 5, atLeast: true,
	})
	a, err := b.syncs(b.startAssayPlain, clients)
	if err != nil {
		return err
	}
	d, err := b.syncs(b.startOther, clients)
	if err != nil {
		return err
	}
	b.row(result{
		what: "syncs per small artifact, by strace", measured: fmt.Sprintf("%.1f", a), limit: fmt.Sprintf("distribution: %.1f", d),
		must: "fewer", got: a / d, need: 0.999,
	})
	return nil
}

// syncs counts the system calls that make something durable, per artifact.
func (b *bench) syncs(start func(string) (*process, error), clients int) (float64, error) {
	p, err := start(filepath.Join(b.dir, "syncs"))
	if err != nil {
		return 0, err
	}
	defer p.discard()
	table := filepath.Join(b.dir, "strace.out")
	defer os.Remove(table)
	var out bytes.Buffer
	trace := exec.Command("strace", "-f", "-c", "-o", table, "-e", "trace=fsync,fdatasync,msync,sync,syncfs,sync_file_range", "-p", strconv.Itoa(p.pid))
	trace.Stderr = &out
	if err := trace.Start(); err != nil {
		return 0, fmt.Errorf("%w; install strace ('make deps')", err)
	}
	time.Sleep(500 * time.Millisecond) // until it is attached
	const most = 200
	n, _, err := artifacts(p.host, clients, most, time.Minute)
	trace.Process.Signal(syscall.SIGINT)
	trace.Wait()
	if err != nil {
		return 0, err
	}
	raw, err := os.ReadFile(table)
	if err != nil {
		return 0, fmt.Errorf("%w: %s", err, out.Bytes())
	}
	calls := 0
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		if len(f) >= 5 && strings.Contains(f[len(f)-1], "sync") {
			c, err := strconv.Atoi(f[3])
			if err != nil {
				return 0, fmt.Errorf("strace's table has changed: %q", line)
			}
			calls += c
		}
	}
	if calls == 0 {
		return 0, fmt.Errorf("strace saw no sync of %s: %s%s", p.name, out.Bytes(), raw)
	}
	b.note("%s: %d syncs for %d artifacts", p.name, calls, n)
	return float64(calls) / float64(n), nil
}
