// Package fingerprint collects what an environment is, and how we know each
// part of it.
package fingerprint

import (
	"bufio"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-dev/assay/conformance/target"
	"github.com/assay-dev/assay/verify/attest"
)

// Fields maps names of facts to what is known of them.
type Fields map[string]attest.FingerprintField

func (f Fields) set(name, value string, known attest.Assurance) {
	if value == "" {
		f[name] = attest.FingerprintField{Assurance: attest.Unavailable}
		return
	}
	f[name] = attest.FingerprintField{Value: value, Assurance: known}
}

// Declared collects what a server says about itself.
func Declared(d target.Description) Fields {
	f := Fields{}
	f.set("serving.name", d.Server, attest.Declared)
	f.set("serving.version", d.ServerVersion, attest.Declared)
	f.set("serving.platform", d.Platform, attest.Declared)
	for k, v := range d.Parameters {
		f.set("serving.parameter."+k, v, attest.Declared)
	}
	return f
}

// Local collects what can be seen of the machine this runs on. It is an
// observation of the environment only if the model is served here.
func Local() Fields {
	f := Fields{}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		f.set("kernel", unix.ByteSliceToString(u.Release[:]), attest.Observed)
		f.set("machine", unix.ByteSliceToString(u.Machine[:]), attest.Observed)
	}
	f.set("os", runtime.GOOS, attest.Observed)
	f.set("cpu.count", strconv.Itoa(runtime.NumCPU()), attest.Observed)
	cpu := cpuinfo("/proc/cpuinfo")
	f.set("cpu.model", cpu["model name"], attest.Observed)
	f.set("cpu.flags", cpu["flags"], attest.Observed)
	f.set("cpu.microcode", cpu["microcode"], attest.Observed)
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		f.set("memory.bytes", strconv.FormatUint(uint64(info.Totalram)*uint64(info.Unit), 10), attest.Observed)
	}
	zone, _ := time.Now().Zone()
	f.set("host.timezone", zone, attest.Observed)
	f.set("host.locale", os.Getenv("LANG"), attest.Observed)
	f.set("gpu", gpus("/proc/driver/nvidia/gpus", "/sys/class/kfd/kfd/topology/nodes"), attest.Observed)
	return f
}

// cpuinfo reads the fields of the first processor.
func cpuinfo(path string) map[string]string {
	out := map[string]string{}
	f, err := os.Open(path)
	if err != nil {
		return out
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		k, v, ok := strings.Cut(lines.Text(), ":")
		if !ok {
			break // the second processor begins
		}
		out[strings.TrimSpace(k)] = strings.TrimSpace(v)
	}
	return out
}

// gpus names the accelerators that the kernel shows; "" if it shows none.
func gpus(nvidia, amd string) string {
	var list []string
	if entries, err := os.ReadDir(nvidia); err == nil {
		for _, e := range entries {
			list = append(list, "nvidia "+cpuinfo(nvidia + "/" + e.Name() + "/information")["Model"])
		}
	}
	if entries, err := os.ReadDir(amd); err == nil {
		for _, e := range entries {
			raw, err := os.ReadFile(amd + "/" + e.Name() + "/properties")
			if err != nil {
				continue
			}
			for _, line := range strings.Split(string(raw), "\n") {
				if v, ok := strings.CutPrefix(line, "gfx_target_version "); ok && v != "0" {
					list = append(list, "amd gfx "+v)
				}
			}
		}
	}
	return strings.Join(list, ", ")
}
