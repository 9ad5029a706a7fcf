// Package fingerprint collects what an environment is, and how we know each
// part of it.
//
// A [Machine] is what is looked at: a tree of files, the settings of a
// process, and a way to run commands. [Collect] asks every collector of one
// table. What a collector looked for and did not get is a field too, marked
// unavailable, with the reason: a fact that went missing is a change.
//
// Nothing here is attested: that takes a quote which hardware signed. What is
// read on the machine is observed; what its operator, a variable or the server
// itself says is declared.
package fingerprint

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-dev/assay/conformance/target"
	"github.com/assay-dev/assay/verify/attest"
)

// Bounds of what collectors take in.
const (
	maxFile     = 16 << 20         // bytes of a file that is read whole
	maxOutput   = 16 << 20         // bytes of a command's output
	maxValue    = 8 << 10          // bytes of a field; a longer one is kept as its digest
	commandTime = 15 * time.Second // of one command; nvidia-smi without persistence mode takes several
)

// Fields maps names of facts to what is known of them.
type Fields map[string]attest.FingerprintField

// set notes a fact; what is empty could not be had, because of why.
func (f Fields) set(name, value string, known attest.Assurance, why string) {
	value = strings.TrimSpace(strings.ToValidUTF8(value, "\uFFFD"))
	switch {
	case value == "":
		f.missing(name, why)
	case len(value) > maxValue:
		f[name] = attest.FingerprintField{Value: fmt.Sprintf("sha256:%x of %d bytes", sha256.Sum256([]byte(value)), len(value)), Assurance: known}
	default:
		f[name] = attest.FingerprintField{Value: value, Assurance: known}
	}
}

func (f Fields) observed(name, value, why string) { f.set(name, value, attest.Observed, why) }

func (f Fields) missing(name, why string) {
	f[name] = attest.FingerprintField{Assurance: attest.Unavailable, Reason: strings.TrimSpace(strings.ToValidUTF8(why, "\uFFFD"))}
}

// Declared collects what a server says about itself.
func Declared(d target.Description) Fields {
	f := Fields{}
	const silent = "the server does not say"
	f.set("serving.name", d.Server, attest.Declared, silent)
	f.set("serving.version", d.ServerVersion, attest.Declared, silent)
	f.set("serving.platform", d.Platform, attest.Declared, silent)
	for k, v := range d.Parameters {
		f.set("serving.parameter."+k, v, attest.Declared, silent)
	}
	return f
}

// Silent is what [Declared] gives for a server that does not answer: every
// field that was known of it, and why none is now.
func Silent(before map[string]attest.FingerprintField, why error) Fields {
	f := Fields{}
	for k := range before {
		if strings.HasPrefix(k, "serving.") && k != servingCommand {
			f.missing(k, why.Error())
		}
	}
	return f
}

// A Machine is where a model is served, as collectors see it.
type Machine struct {
	// Root is the tree of files, from "/".
	Root fs.FS

	// Arch is the machine's architecture in the words of uname -m.
	Arch string

	// PID is the process that serves the model: its settings, its libraries,
	// its limits are what counts. 0 if it was not named.
	PID int

	// Environ holds the settings, KEY=VALUE. With a PID they are read from
	// that process and these are not looked at; without one they are our own,
	// and that the server has the same is what the operator declares.
	Environ []string

	// Run runs a command and returns what it printed. It must end with ctx.
	// If it is nil no command is run.
	Run func(ctx context.Context, name string, args ...string) ([]byte, error)

	// Metadata asks the cloud's instance metadata service where the machine
	// is. If it is nil nobody is asked.
	Metadata func(ctx context.Context) (region, zone string, err error)
}

// This is the machine we run on. pid is the process that serves the model, 0
// if nobody knows it.
func This(pid int) *Machine {
	m := &Machine{Root: os.DirFS("/"), PID: pid, Environ: os.Environ(), Run: runCommand}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Arch = unix.ByteSliceToString(u.Machine[:])
	}
	return m
}

// A collector looks at one part of a machine. It sets every field that it
// stands for, or says why it cannot.
type collector struct {
	name    string
	collect func(ctx context.Context, m *Machine, f Fields)
}

var collectors = []collector{
	{"kernel", kernel},
	{"cpu", cpu},
	{"memory", memory},
	{"cpu limits", cpuLimits},
	{"C library and numeric libraries", libraries},
	{"settings", settings},
	{"NVIDIA", nvidia},
	{"AMD", amd},
	{"container", container},
	{"serving process", serving},
	{"region", region},
	{"time zone and locale", placeAndTime},
}

// Collect looks at a machine. It always returns; how long it takes at most
// follows from ctx and from the bounds of this package.
func Collect(ctx context.Context, m *Machine) Fields {
	f := Fields{}
	for _, c := range collectors {
		part := Fields{}
		c.collect(ctx, m, part)
		// The patch levels of all drivers are one field.
		if a, b := f[driverPatch], part[driverPatch]; a.Value != "" && b.Value != "" {
			part.observed(driverPatch, a.Value+", "+b.Value, "")
		}
		maps.Copy(f, part)
	}
	if _, ok := f["gpu"]; !ok {
		f.observed("gpu", "none", "")
	}
	return f
}

// driverPatch is the field for what follows major and minor of driver
// versions: a change of it is soft.
const driverPatch = "driver.patch"

// read returns a file of the machine.
func (m *Machine) read(name string) ([]byte, error) {
	file, err := m.Root.Open(strings.TrimPrefix(path.Clean(name), "/"))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	raw, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("reading /%s: %w", strings.TrimPrefix(name, "/"), err)
	}
	if len(raw) > maxFile {
		return nil, fmt.Errorf("/%s is larger than %d bytes", strings.TrimPrefix(name, "/"), maxFile)
	}
	return raw, nil
}

// line returns the first line of a file.
func (m *Machine) line(name string) (string, error) {
	raw, err := m.read(name)
	first, _, _ := strings.Cut(string(raw), "\n")
	return strings.TrimSpace(first), err
}

func (m *Machine) exists(name string) bool {
	_, err := fs.Stat(m.Root, strings.TrimPrefix(name, "/"))
	return err == nil
}

// process is a file of the serving process in /proc; of our own if it was not
// named.
func (m *Machine) process(name string) string {
	if m.PID == 0 {
		return "proc/self/" + name
	}
	return "proc/" + strconv.Itoa(m.PID) + "/" + name
}

// environ returns the settings, and how they are known.
func (m *Machine) environ() (list []string, known attest.Assurance, err error) {
	if m.PID == 0 {
		return m.Environ, attest.Declared, nil
	}
	raw, err := m.read(m.process("environ"))
	if err != nil {
		return nil, attest.Observed, err
	}
	return strings.Split(string(raw), "\x00"), attest.Observed, nil
}

// getenv returns a setting, "" if it is not set.
func (m *Machine) getenv(name string) (value string, known attest.Assurance) {
	list, known, _ := m.environ()
	for _, e := range list {
		if v, ok := strings.CutPrefix(e, name+"="); ok {
			value = v // the last one wins, as in os/exec
		}
	}
	return value, known
}

// run runs a command within the bounds.
func (m *Machine) run(ctx context.Context, name string, args ...string) ([]byte, error) {
	if m.Run == nil {
		return nil, fmt.Errorf("%s was not run: no commands are", name)
	}
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	out, err := m.Run(ctx, name, args...)
	if err == nil && len(out) > maxOutput {
		err = fmt.Errorf("it printed more than %d bytes", maxOutput)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return out, nil
}

// runCommand is Run on this machine.
func runCommand(ctx context.Context, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	// For output that a command's own children hold open. What it has written
	// itself must come through on a machine that is busy with other things: one
	// second was not enough there.
	cmd.WaitDelay = 5 * time.Second
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var out, errOut capped
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("it did not end in time: %w", ctx.Err())
	case errors.Is(err, exec.ErrNotFound):
		return nil, exec.ErrNotFound
	case err != nil:
		first, _, _ := strings.Cut(strings.TrimSpace(errOut.String()), "\n")
		return nil, fmt.Errorf("%w: %.200s", err, first)
	}
	return out.Bytes(), nil
}

// A capped buffer keeps one byte more than is allowed, and takes the rest
// without keeping it, so that the writer comes to its end.
type capped struct{ bytes.Buffer }

func (c *capped) Write(p []byte) (int, error) {
	if room := maxOutput + 1 - c.Len(); room > 0 {
		c.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// counted writes a list of equal parts as one: "H100", "8 x H100",
// "7 x H100, 1 x A100". Parts that are not there do not count.
func counted(values []string, count bool) string {
	n := map[string]int{}
	for _, v := range values {
		if v = strings.TrimSpace(v); v != "" {
			n[v]++
		}
	}
	var list []string
	for _, v := range slices.Sorted(maps.Keys(n)) {
		if len(n) == 1 && !count {
			return v
		}
		list = append(list, fmt.Sprintf("%d x %s", n[v], v))
	}
	return strings.Join(list, ", ")
}

// majorMinor returns the first two parts of a version.
func majorMinor(version string) string {
	parts := strings.SplitN(version, ".", 3)
	return strings.Join(parts[:min(2, len(parts))], ".")
}
