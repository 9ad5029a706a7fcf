package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// clientRows: assay push and pull beside oras, of one file.
func clientRows(b *bench) error {
	n := int64(1 * gib)
	if b.quick {
		n = 256 * mib
	}
	p, err := b.payload(n)
	if err != nil {
		return err
	}
	dir := filepath.Join(b.dir, "client")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := p.writeFile(filepath.Join(dir, "model.bin")); err != nil {
		return err
	}
	command := func(host string, args ...string) (time.Duration, error) {
		cmd := exec.CommandContext(b.ctx, args[0], args[1:]...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "ASSAY_SERVER=http://"+host)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		settle()
		start := time.Now()
		err := cmd.Run()
		if err != nil {
			err = fmt.Errorf("%v: %w\n%s", args, err, out.Bytes())
		}
		return time.Since(start), err
	}
	var push, pull, orasPush, orasPull []time.Duration
	for range b.runs {
		for _, c := range []struct {
			push, pull     []string
			pushed, pulled *[]time.Duration
		}{
			{[]string{b.assay, "push", "-q", "bench/model:1.0.0", "model.bin"}, []string{b.assay, "pull", "-q", "bench/model:1.0.0", "--dir", "out"}, &push, &pull},
			{[]string{b.oras, "push", "--no-tty", "--plain-http", "HOST/bench/model:1.0.0", "model.bin"}, []string{b.oras, "pull", "--no-tty", "--plain-http", "-o", "out", "HOST/bench/model:1.0.0"}, &orasPush, &orasPull},
		} {
			s, err := b.startAssay(filepath.Join(b.dir, "server"))
			if err != nil {
				return err
			}
			err = func() error {
				defer s.discard()
				for _, args := range [][]string{c.push, c.pull} {
					for i, a := range args {
						if a == "HOST/bench/model:1.0.0" {
							args[i] = s.host + a[4:]
						}
					}
				}
				took, err := command(s.host, c.push...)
				if err != nil {
					return err
				}
				*c.pushed = append(*c.pushed, took)
				if took, err = command(s.host, c.pull...); err != nil {
					return err
				}
				*c.pulled = append(*c.pulled, took)
				return os.RemoveAll(filepath.Join(dir, "out"))
			}()
			if err != nil {
				return err
			}
		}
		b.note("assay push %v, pull %v; oras push %v, pull %v", push[len(push)-1], pull[len(pull)-1], orasPush[len(orasPush)-1], orasPull[len(orasPull)-1])
	}
	for _, m := range []struct {
		what         string
		ours, theirs []time.Duration
	}{{"assay push of one file of " + size(n), push, orasPush}, {"assay pull of it", pull, orasPull}} {
		ours, theirs := median(m.ours), median(m.theirs)
		b.row(result{
			what: m.what, measured: fmt.Sprintf("%.2f s", ours.Seconds()), limit: fmt.Sprintf("oras: %.2f s", theirs.Seconds()),
			must: "no slower", got: ours.Seconds() / theirs.Seconds(), need: 1,
		})
	}
	return nil
}
