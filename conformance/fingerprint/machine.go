package fingerprint

import (
	"context"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
)

func kernel(_ context.Context, m *Machine, f Fields) {
	release, err := m.line("proc/sys/kernel/osrelease")
	f.observed("kernel", release, reason(err, "/proc/sys/kernel/osrelease is empty"))
	os, err := m.line("proc/sys/kernel/ostype")
	f.observed("os", strings.ToLower(os), reason(err, "/proc/sys/kernel/ostype is empty"))
	f.observed("machine", m.Arch, "the architecture is not known")
}

func reason(err error, otherwise string) string {
	if err != nil {
		return err.Error()
	}
	return otherwise
}

// The words of /proc/cpuinfo: those of x86, else those of arm64, where a model
// has numbers and no name.
func cpu(_ context.Context, m *Machine, f Fields) {
	raw, err := m.read("proc/cpuinfo")
	processors := cpuinfo(raw)
	if err == nil && len(processors) == 0 {
		err = fmt.Errorf("/proc/cpuinfo lists no processor")
	}
	if err != nil {
		for _, name := range []string{"cpu.count", "cpu.model", "cpu.flags", "cpu.microcode"} {
			f.missing(name, err.Error())
		}
		return
	}
	f.observed("cpu.count", strconv.Itoa(len(processors)), "")
	collect := func(value func(p map[string]string) string) string {
		var list []string
		for _, p := range processors {
			list = append(list, value(p))
		}
		return counted(list, false)
	}
	f.observed("cpu.model", collect(func(p map[string]string) string {
		if name := p["model name"]; name != "" {
			// Two models can have one name: cloud providers blank it.
			return strings.TrimSpace(fmt.Sprintf("%s %s family %s model %s stepping %s", p["vendor_id"], name, p["cpu family"], p["model"], p["stepping"]))
		}
		if p["CPU part"] != "" {
			return fmt.Sprintf("implementer %s part %s variant %s revision %s", p["CPU implementer"], p["CPU part"], p["CPU variant"], p["CPU revision"])
		}
		return ""
	}), "/proc/cpuinfo does not name it")
	f.observed("cpu.flags", collect(func(p map[string]string) string {
		flags := strings.Fields(p["flags"] + " " + p["Features"])
		slices.Sort(flags)
		return strings.Join(slices.Compact(flags), " ")
	}), "/proc/cpuinfo lists none")
	f.observed("cpu.microcode", collect(func(p map[string]string) string { return p["microcode"] }), "/proc/cpuinfo does not say")
}

// cpuinfo returns the fields of each processor: paragraphs of "key : value".
func cpuinfo(raw []byte) (processors []map[string]string) {
	p := map[string]string{}
	end := func() {
		// arm64 ends with a paragraph about the board.
		if _, ok := p["processor"]; ok {
			processors = append(processors, p)
		}
		p = map[string]string{}
	}
	for line := range strings.Lines(string(raw)) {
		k, v, ok := strings.Cut(line, ":")
		if !ok {
			end()
			continue
		}
		p[strings.TrimSpace(k)] = strings.TrimSpace(v)
	}
	end()
	return processors
}

func memory(_ context.Context, m *Machine, f Fields) {
	raw, err := m.read("proc/meminfo")
	for line := range strings.Lines(string(raw)) {
		if v, ok := strings.CutPrefix(line, "MemTotal:"); ok {
			kib, parse := strconv.ParseUint(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(v), "kB")), 10, 53)
			if err = parse; err == nil {
				f.observed("memory.bytes", strconv.FormatUint(kib*1024, 10), "")
				return
			}
		}
	}
	f.missing("memory.bytes", reason(err, "/proc/meminfo has no MemTotal"))
}

// cpuLimits are what makes a runtime choose fewer threads than there are
// processors: the control group's quota and the processors that may be used.
func cpuLimits(_ context.Context, m *Machine, f Fields) {
	quota, err := m.quota()
	f.observed("cpu.quota", quota, reason(err, "no control group says"))
	raw, err := m.read(m.process("status"))
	allowed := ""
	for line := range strings.Lines(string(raw)) {
		if v, ok := strings.CutPrefix(line, "Cpus_allowed_list:"); ok {
			allowed = v
		}
	}
	f.observed("cpu.allowed", allowed, reason(err, "/proc does not say"))
}

// quota is how much processor time the control group of the process has:
// "none", or microseconds of time per microseconds.
func (m *Machine) quota() (string, error) {
	raw, err := m.read(m.process("cgroup"))
	if err != nil {
		return "", err
	}
	// "hierarchy-ID:controller-list:cgroup-path"; hierarchy 0 is version 2
	// (cgroups(7)). Inside a container the path can be one of the host, which
	// is not mounted there: then the mount's root is the container's group.
	for line := range strings.Lines(string(raw)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		controllers := strings.Split(parts[1], ",")
		switch {
		case parts[0] == "0" && parts[1] == "":
			for _, mount := range []string{"sys/fs/cgroup", "sys/fs/cgroup/unified"} {
				// A limit of any group above holds as well; the nearest is told.
				for dir := path.Join(mount, parts[2]); ; dir = path.Dir(dir) {
					if v, err := m.line(path.Join(dir, "cpu.max")); err == nil {
						if q, period, ok := strings.Cut(v, " "); ok && q != "max" {
							return q + "/" + period, nil
						}
					}
					if len(dir) <= len(mount) {
						break
					}
				}
			}
		case slices.Contains(controllers, "cpu"):
			for _, mount := range []string{"sys/fs/cgroup/" + parts[1], "sys/fs/cgroup/cpu"} {
				for dir := path.Join(mount, parts[2]); ; dir = path.Dir(dir) {
					q, err := m.line(path.Join(dir, "cpu.cfs_quota_us"))
					period, err2 := m.line(path.Join(dir, "cpu.cfs_period_us"))
					if err == nil && err2 == nil && q != "-1" && q != "" {
						return q + "/" + period, nil
					}
					if len(dir) <= len(mount) {
						break
					}
				}
			}
		}
	}
	return "none", nil
}

// settings that a numeric library or a runtime reads: how many threads, which
// instructions, which precision, whether in a fixed order.
var (
	settingPrefixes = []string{
		"OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "BLIS_", "VECLIB_", "NUMEXPR_", "TBB_", "DNNL_", "ONEDNN_", "ORT_",
		"CUBLAS_", "CUDNN_", "CUDA_", "NVIDIA_TF32", "TORCH_", "PYTORCH_", "ATEN_", "TF_", "XLA_", "JAX_", "FLAGS_",
		"HIP_", "HSA_", "ROCBLAS_", "HIPBLASLT_", "MIOPEN_", "ROCR_", "TRITON_", "NCCL_", "RCCL_", "GGML_", "LLAMA_ARG_",
	}
	settingNames = []string{
		"GOMAXPROCS", "GOAMD64", "GOTO_NUM_THREADS", "GLIBC_TUNABLES", "LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONHASHSEED",
		"VLLM_BATCH_INVARIANT", "VLLM_ATTENTION_BACKEND", "VLLM_USE_V1", "VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_USE_TRITON_FLASH_ATTN",
		"VLLM_ROCM_USE_AITER", "SGLANG_ENABLE_DETERMINISTIC_INFERENCE", "USE_FLASH_ATTENTION", "FLASH_ATTENTION_DETERMINISTIC",
	}

	// secretWords are parts of names whose values are never written down: the
	// document is pushed, and many may read it.
	secretWords = []string{"KEY", "TOKEN", "SECRET", "PASSW", "CREDENTIAL", "AUTH"}
)

func isSecret(name string) bool {
	name = strings.ToUpper(name)
	return slices.ContainsFunc(secretWords, func(w string) bool { return strings.Contains(name, w) })
}

func settings(_ context.Context, m *Machine, f Fields) {
	list, known, err := m.environ()
	if err != nil {
		f.missing("setting", err.Error())
		return
	}
	values := map[string]string{}
	for _, e := range list {
		name, value, ok := strings.Cut(e, "=")
		if !ok || isSecret(name) {
			continue
		}
		if slices.Contains(settingNames, name) || slices.ContainsFunc(settingPrefixes, func(p string) bool { return strings.HasPrefix(name, p) }) {
			values[name] = value
		}
	}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		// A variable that is set to nothing is not one that is not set.
		f.set("setting."+name, strconv.Quote(values[name]), known, "")
	}
}

// servingCommand is the field for how the server was started.
const servingCommand = "serving.command"

// serving is the command line of the serving process: the flags of the engine
// are its configuration.
func serving(_ context.Context, m *Machine, f Fields) {
	if m.PID == 0 {
		f.missing(servingCommand, "the process that serves was not named (--pid)")
		return
	}
	raw, err := m.read(m.process("cmdline"))
	args := strings.Split(strings.TrimRight(string(raw), "\x00"), "\x00")
	f.observed(servingCommand, strings.Join(redacted(args), " "), reason(err, "the process has no command line"))
}

// redacted quotes arguments as far as needed, without the values of flags
// whose names say that they are secret.
func redacted(args []string) (out []string) {
	hide := false
	for _, a := range args {
		name, _, assigned := strings.Cut(a, "=")
		switch {
		case hide && !strings.HasPrefix(a, "-"):
			a = "(not shown)"
			hide = false
		case assigned && isSecret(name):
			a = name + "=(not shown)"
			hide = false
		default:
			hide = strings.HasPrefix(a, "-") && !assigned && isSecret(a)
		}
		if strings.ContainsAny(a, " \t\n\"'") && a != "(not shown)" {
			a = strconv.Quote(a)
		}
		out = append(out, a)
	}
	return out
}
