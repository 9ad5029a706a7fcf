package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/pflag"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"
)

// Exit statuses, so that a pipeline can tell "no" from "don't know".
const (
	exitOK         = 0
	exitError      = 1 // something failed; nothing was decided
	exitUsage      = 2 // the command line is wrong
	exitDenied     = 3 // the answer is no: denied, rejected, verification failed
	exitNoEvidence = 4 // the evidence does not reach: none found, or inconclusive
)

var errUsage = errors.New("usage")

// usagef is an error of the command line.
func usagef(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}

type usageError struct{ error }

func (e *usageError) Unwrap() error        { return e.error }
func (e *usageError) Is(target error) bool { return target == errUsage }

// A verdictError carries the exit status of an answer that was printed.
type verdictError struct{ code int }

func (e *verdictError) Error() string { return fmt.Sprintf("exit status %d", e.code) }

// verdict returns the error with which a command ends when its printed answer
// is not yes; nil for exitOK.
func verdict(code int) error {
	if code == exitOK {
		return nil
	}
	return &verdictError{code}
}

// A remedyError is an error together with what to do about it.
type remedyError struct {
	err    error
	remedy string
}

func (e *remedyError) Error() string { return e.err.Error() }
func (e *remedyError) Unwrap() error { return e.err }

// remedy adds to err what the user should do next, unless whoever made err
// has said so: they knew better.
func remedy(err error, format string, args ...any) error {
	var known *remedyError
	if err == nil || errors.As(err, &known) {
		return err
	}
	return &remedyError{err, fmt.Sprintf(format, args...)}
}

// globals are what all commands share: the streams and the global flags.
type globals struct {
	in       io.Reader
	out, err io.Writer

	output    string
	server    string
	plainHTTP bool
	quiet     bool
	config    string
}

func (g *globals) addFlags(f *pflag.FlagSet) {
	f.StringVarP(&g.output, "output", "o", "text", "how to print the result: text or json")
	f.StringVar(&g.server, "server", "http://127.0.0.1:5000", "the Assay server's address")
	f.BoolVar(&g.plainHTTP, "plain-http", false, "reach registries other than loopback ones without TLS")
	f.BoolVarP(&g.quiet, "quiet", "q", false, "no progress, only the result")
	f.StringVar(&g.config, "config", "", "a YAML file with values for flags (their names are the keys)")
}

func (g *globals) check() error {
	if g.output != "text" && g.output != "json" {
		return usagef("--output %q is unknown: use text or json", g.output)
	}
	return nil
}

// json reports whether results are to be printed as JSON.
func (g *globals) json() bool { return g.output == "json" }

// print writes v as JSON under -o json and calls text otherwise.
func (g *globals) print(v any, text func(w io.Writer)) error {
	if g.json() {
		enc := json.NewEncoder(g.out)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		return enc.Encode(v)
	}
	text(g.out)
	return nil
}

// table prints rows in columns; the first row is the heading.
func table(w io.Writer, rows [][]string) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		fmt.Fprintln(tw, strings.TrimRight(strings.Join(r, "\t"), "\t"))
	}
	tw.Flush()
}

// note writes a line for people to the error stream, unless --quiet.
func (g *globals) note(format string, args ...any) {
	if !g.quiet {
		fmt.Fprintf(g.err, format+"\n", args...)
	}
}

func (g *globals) printError(err error) {
	var r *remedyError
	next := ""
	if errors.As(err, &r) {
		next = r.remedy
	}
	if g.json() {
		json.NewEncoder(g.err).Encode(struct {
			Error  string `json:"error"`
			Remedy string `json:"remedy,omitempty"`
		}{err.Error(), next})
		return
	}
	fmt.Fprintf(g.err, "assay: %v\n", err)
	if next != "" {
		fmt.Fprintf(g.err, "  what to do: %s\n", next)
	}
}

// A progress shows how far a long piece of work has come: a bar with rate and
// remaining time on a terminal; elsewhere, in a pipeline's log, a line per
// tenth, but none more often than each two seconds; nothing under --quiet. Its
// methods may be called concurrently.
type progress struct {
	g     *globals
	pool  *mpb.Progress
	bar   *mpb.Bar
	label string
	total int64
	bytes bool
	add   chan int64
	done  chan struct{}
}

// progress begins a progress display of total units, or of nobody knows how
// many if that is 0, counted as bytes (KiB, MiB) or as things.
func (g *globals) progress(label string, total int64, bytes bool) *progress {
	p := &progress{g: g, label: label, total: total, bytes: bytes}
	if g.quiet {
		return p
	}
	if f, ok := g.err.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		p.pool = mpb.New(mpb.WithOutput(f), mpb.WithWidth(64), mpb.WithRefreshRate(100*time.Millisecond))
		count := decor.CountersNoUnit("%d of %d")
		rate := decor.AverageSpeed(0, "%.0f/s", decor.WCSyncSpace)
		if bytes {
			count = decor.CountersKibiByte("% .1f of % .1f")
			rate = decor.AverageSpeed(decor.SizeB1024(0), "% .1f", decor.WCSyncSpace)
		}
		if total == 0 {
			p.bar = p.pool.New(0, mpb.SpinnerStyle(), mpb.PrependDecorators(decor.Name(label+" "), decor.CurrentKibiByte("% .1f")), mpb.AppendDecorators(rate))
			return p
		}
		p.bar = p.pool.AddBar(total,
			mpb.PrependDecorators(decor.Name(label+" ", decor.WCSyncSpaceR), count),
			mpb.AppendDecorators(rate, decor.OnComplete(decor.AverageETA(decor.ET_STYLE_GO, decor.WCSyncSpace), "")))
		return p
	}
	p.add, p.done = make(chan int64), make(chan struct{})
	go p.lines()
	return p
}

// lineEvery is how often a line of progress may be printed.
const lineEvery = 2 * time.Second

func (p *progress) lines() {
	defer close(p.done)
	start := time.Now()
	last := start
	var n, tenths int64
	for d := range p.add {
		n += d
		if p.total == 0 {
			if time.Since(last) >= lineEvery {
				last = time.Now()
				fmt.Fprintf(p.g.err, "%s: %s (%.1f s)\n", p.label, p.count(n), time.Since(start).Seconds())
			}
			continue
		}
		if t := n * 10 / p.total; t > tenths && (time.Since(last) >= lineEvery || n >= p.total) {
			tenths, last = t, time.Now()
			fmt.Fprintf(p.g.err, "%s: %3d %% (%s of %s, %.1f s)\n", p.label, t*10, p.count(n), p.count(p.total), time.Since(start).Seconds())
		}
	}
}

func (p *progress) count(n int64) string {
	if p.bytes {
		return byteSize(n)
	}
	return fmt.Sprint(n)
}

// Add says that n more units are done.
func (p *progress) Add(n int64) {
	switch {
	case p.bar != nil:
		p.bar.IncrInt64(n)
	case p.add != nil:
		p.add <- n
	}
}

// Stop ends the display. The progress must not be used after it.
func (p *progress) Stop() {
	switch {
	case p.bar != nil:
		if !p.bar.Completed() {
			p.bar.Abort(false)
		}
		p.pool.Wait()
	case p.add != nil:
		close(p.add)
		<-p.done
	}
}

// byteSize renders a size as people read it: 1.5 MiB.
func byteSize(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	div, exp := int64(unit), 0
	for m := n / unit; m >= unit; m /= unit {
		div *= unit
		exp++
	}
	return fmt.Sprintf("%.1f %ciB", float64(n)/float64(div), "KMGTPE"[exp])
}

// short abbreviates a digest for tables; the whole of it is in -o json.
func short(digest string) string {
	alg, hex, ok := strings.Cut(digest, ":")
	if !ok || len(hex) < 12 {
		return digest
	}
	return alg + ":" + hex[:12]
}
