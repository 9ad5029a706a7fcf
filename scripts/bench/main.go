// Bench measures what a registry for large models must be good at, each figure
// beside the limit it is held against: a bare program that does only the
// unavoidable part of the work, or another registry, run in turns with it on
// the same machine. Disks and neighbours are noisy, so what counts is the
// ratio of the medians of interleaved runs, never a speed.
//
// It drives real programs: bin/assay, and from the tools folder distribution's
// registry and oras. Run it by `make bench`; docs/performance.md explains the
// rows and keeps the table.
package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// A bench is one invocation: the programs, and how much work they get.
type bench struct {
	ctx   context.Context
	assay string // paths of programs
	other string // distribution's registry
	oras  string
	dir   string // on the disk that is measured; emptied at the end
	keep  string // where data that takes long to make is kept between invocations; "" for nowhere
	quick bool
	runs  int // of each kind, interleaved
	many  int // manifests of the row about restarts

	payloads map[content]*payload
	results  []result
}

// A result is one row of the table.
type result struct {
	what      string
	measured  string
	limit     string
	must      string
	got, need float64
	atLeast   bool // or at most
}

func (r result) pass() bool {
	if r.atLeast {
		return r.got >= r.need
	}
	return r.got <= r.need
}

// groups are the rows by name, in the order of the table.
var groups = []struct {
	name string
	run  func(*bench) error
}{
	{"push", pushRows},
	{"push-large", largePushRows},
	{"parallel", parallelPushRow},
	{"pull", pullRows},
	{"small", smallRows},
	{"manifests", manifestRows},
	{"lists", listRows},
	{"restart", restartRows},
	{"memory", memoryRows},
	{"collect", collectRows},
	{"client", clientRows},
}

func main() {
	spareProcessors()
	for variable, program := range map[string]func(string) error{serveFileVariable: serveFile, serveBytesVariable: serveBytes, receiveVariable: receive} {
		if path := os.Getenv(variable); path != "" {
			fmt.Fprintln(os.Stderr, "bench:", program(path))
			os.Exit(1)
		}
	}
	b := &bench{payloads: map[content]*payload{}}
	var rows, tools string
	var shared bool
	flag.StringVar(&b.assay, "assay", "bin/assay", "the assay `program`")
	flag.StringVar(&tools, "tools", os.Getenv("ASSAY_TOOLS"), "the `folder` with distribution's registry and oras")
	flag.StringVar(&b.dir, "dir", ".bench", "a `folder` on the disk to measure")
	flag.StringVar(&b.keep, "keep", "", "a `folder` to keep prepared data in for the next run")
	flag.BoolVar(&b.quick, "quick", false, "small sizes, to see that it runs")
	flag.IntVar(&b.runs, "runs", 5, "how often each thing is measured")
	flag.IntVar(&b.many, "manifests", 1_000_000, "how many manifests a server is restarted with")
	flag.StringVar(&rows, "rows", "", "a regular `expression` over the names of the groups: "+names())
	flag.BoolVar(&shared, "shared-network", false, "measure over the machine's own loopback, whatever paces it")
	flag.Parse()
	switch {
	case os.Getenv(networkVariable) != "":
		if err := setUpNetwork(); err != nil {
			fmt.Fprintln(os.Stderr, "bench: a network of its own:", err)
			os.Exit(1)
		}
	case !shared:
		if status, ok := inOwnNetwork(); ok {
			os.Exit(status)
		}
		b.note("a network of its own cannot be had here: this is over the machine's")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	b.ctx = ctx
	if err := b.run(tools, rows); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	for _, r := range b.results {
		if !r.pass() {
			os.Exit(3)
		}
	}
}

func names() string {
	var list []string
	for _, g := range groups {
		list = append(list, g.name)
	}
	return strings.Join(list, ", ")
}

func (b *bench) run(tools, rows string) error {
	want, err := regexp.Compile(rows)
	if err != nil {
		return err
	}
	b.other, b.oras = filepath.Join(tools, "registry"), filepath.Join(tools, "oras")
	for _, p := range []*string{&b.assay, &b.other, &b.oras, &b.dir} {
		if *p, err = filepath.Abs(*p); err != nil {
			return err
		}
	}
	for _, p := range []string{b.assay, b.other, b.oras} {
		if _, err := exec.LookPath(p); err != nil {
			return fmt.Errorf("%w; run 'make bench', which builds it", err)
		}
	}
	if b.quick {
		b.runs = min(b.runs, 3)
	}
	if err := os.MkdirAll(b.dir, 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	defer b.closePayloads()
	fmt.Printf("machine: %s; %s; %s\n\n", machine(b.dir), network(), time.Now().UTC().Format("2006-01-02"))
	fmt.Println("| work | measured | limit in the same run | must reach | reached | |")
	fmt.Println("|---|---|---|---|---|---|")
	for _, g := range groups {
		if !want.MatchString(g.name) {
			continue
		}
		if err := g.run(b); err != nil {
			return fmt.Errorf("%s: %w", g.name, err)
		}
	}
	return nil
}

// row prints a row of the table as soon as it is known.
func (b *bench) row(r result) {
	b.results = append(b.results, r)
	verdict := "pass"
	if !r.pass() {
		verdict = "**miss**"
	}
	fmt.Printf("| %s | %s | %s | %s | %.2f | %s |\n", r.what, r.measured, r.limit, r.must, r.got, verdict)
}

// note prints what was seen besides the rows.
func (b *bench) note(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "  %s\n", fmt.Sprintf(format, args...))
}

// inTurns measures one thing after the other, so many times and each time in
// another order: what one leaves behind is not always the same one's.
func inTurns(runs int, measure ...func() error) error {
	order := rand.New(rand.NewPCG(1, 1))
	for range runs {
		for _, k := range order.Perm(len(measure)) {
			if err := measure[k](); err != nil {
				return err
			}
		}
	}
	return nil
}

// median of a list, which it sorts.
func median[T int64 | float64 | time.Duration](list []T) T {
	slices.Sort(list)
	return list[len(list)/2]
}

// percentile of a sorted list.
func percentile(list []time.Duration, p float64) time.Duration {
	return list[min(len(list)-1, int(float64(len(list))*p))]
}

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
)

// rate is bytes per second in GiB.
func rate(n int64, took time.Duration) float64 { return float64(n) / gib / took.Seconds() }

// size renders a size in whole units.
func size(n int64) string {
	if n%gib == 0 {
		return fmt.Sprintf("%d GiB", n/gib)
	}
	return fmt.Sprintf("%d MiB", n/mib)
}

// spareProcessors lets this program wait for cores, and not for its own system
// calls to be noticed (see the function of that name in 'assay serve').
func spareProcessors() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(4 * runtime.GOMAXPROCS(0))
	}
}

// machine says on what this ran.
func machine(dir string) string {
	cpu := "unknown processor"
	if raw, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if m := regexp.MustCompile(`model name\s*: (.*)`).FindSubmatch(raw); m != nil {
			cpu = string(m[1])
		}
	}
	var name syscall.Utsname
	syscall.Uname(&name)
	release := make([]byte, 0, len(name.Release))
	for _, c := range name.Release {
		if c == 0 {
			break
		}
		release = append(release, byte(c))
	}
	var fs syscall.Statfs_t
	syscall.Statfs(dir, &fs)
	var mem syscall.Sysinfo_t
	syscall.Sysinfo(&mem)
	kind := map[int64]string{0xef53: "ext4", 0x58465342: "xfs", 0x9123683e: "btrfs", 0x01021994: "tmpfs"}[int64(fs.Type)]
	return fmt.Sprintf("%d cores of %s, %d GiB of memory, Linux %s, %s, %s", runtime.NumCPU(), cpu, mem.Totalram>>30, release, kind, runtime.Version())
}
