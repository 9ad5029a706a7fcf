// Package fingerprint collects what an environment is, and how we know each
// part of it.
//
// A collector reads files below a root and the output of commands, both of which
// come from a [Host]: so a recorded machine is as good as this one, and what is
// not there is recorded as unavailable and never left out. Names of fields and
// what their change voids are in verify/attest.
package fingerprint

import (
	"context"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/assay-dev/assay/conformance/target"
	"github.com/assay-dev/assay/verify/attest"
)

// Fields maps names of facts to what is known of them.
type Fields map[string]attest.FingerprintField

func (f Fields) set(name, value string, known attest.Assurance) {
	value = strings.TrimSpace(value)
	if value == "" {
		if _, ok := f[name]; !ok {
			f[name] = attest.FingerprintField{Assurance: attest.Unavailable}
		}
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

// A Host is the machine to look at.
type Host struct {
	// Root is its file system.
	Root fs.FS

	// Run returns the standard output of a command, or an error if it is not
	// there or fails.
	Run func(ctx context.Context, name string, args ...string) ([]byte, error)

	// PID is the process that serves the model; 0 if it is not known, and then
	// its settings are unavailable: those of somebody else say nothing.
	PID int
}

// commandTimeout bounds how long a command may take: nvidia-smi hangs where a
// driver is broken.
const commandTimeout = 20 * time.Second

// ThisMachine is the machine that this runs on.
func ThisMachine(pid int) Host {
	return Host{Root: os.DirFS("/"), PID: pid, Run: func(ctx context.Context, name string, args ...string) ([]byte, error) {
		ctx, cancel := context.WithTimeout(ctx, commandTimeout)
		defer cancel()
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Env = append(os.Environ(), "LC_ALL=C")
		return cmd.Output()
	}}
}

// Collect looks at a host. It is an observation of the environment only if the
// model is served there.
func Collect(ctx context.Context, h Host) Fields {
	f := Fields{}
	h.machine(f)
	h.libraries(ctx, f)
	h.process(ctx, f)
	h.nvidia(ctx, f)
	h.amd(ctx, f)
	return f
}

// read returns a file's text, "" if there is none.
func (h Host) read(name string) string {
	raw, err := fs.ReadFile(h.Root, name)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(raw))
}

// pairs reads lines of "key SEPARATOR value" up to the first empty line.
func pairs(text, separator string) map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(text) {
		if strings.TrimSpace(line) == "" {
			break
		}
		if k, v, ok := strings.Cut(line, separator); ok {
			out[strings.TrimSpace(k)] = strings.Trim(strings.TrimSpace(v), `"`)
		}
	}
	return out
}

func (h Host) machine(f Fields) {
	f.set("kernel", h.read("proc/sys/kernel/osrelease"), attest.Observed)
	f.set("machine", h.read("proc/sys/kernel/arch"), attest.Observed)
	f.set("os", pairs(h.read("etc/os-release"), "=")["PRETTY_NAME"], attest.Observed)
	text := h.read("proc/cpuinfo")
	cpu := pairs(text, ":") // of the first processor
	model := cpu["model name"]
	if model == "" && cpu["CPU part"] != "" { // arm64
		model = strings.Join([]string{"implementer", cpu["CPU implementer"], "part", cpu["CPU part"], "variant", cpu["CPU variant"], "revision", cpu["CPU revision"]}, " ")
	}
	f.set("cpu.model", model, attest.Observed)
	flags := strings.Fields(cpu["flags"] + " " + cpu["Features"])
	slices.Sort(flags)
	f.set("cpu.flags", strings.Join(slices.Compact(flags), " "), attest.Observed)
	f.set("cpu.microcode", cpu["microcode"], attest.Observed)
	if n := strings.Count("\n"+text, "\nprocessor"); n > 0 {
		f.set("cpu.count", strconv.Itoa(n), attest.Observed)
	} else {
		f.set("cpu.count", "", attest.Observed)
	}
	f.set("cpu.quota", h.read("sys/fs/cgroup/cpu.max"), attest.Observed)
	// A kernel keeps a little for itself, more or less at each start: whole GiB
	// are what stays the same.
	gib := ""
	if words := strings.Fields(pairs(h.read("proc/meminfo"), ":")["MemTotal"]); len(words) > 0 {
		if kib, err := strconv.ParseInt(words[0], 10, 64); err == nil {
			gib = strconv.FormatInt((kib+1<<19)>>20, 10)
		}
	}
	f.set("memory.gib", gib, attest.Observed)
	zone := h.read("etc/timezone")
	if zone == "" {
		if link, err := fs.ReadLink(h.Root, "etc/localtime"); err == nil {
			_, zone, _ = strings.Cut(link, "zoneinfo/")
		}
	}
	f.set("host.timezone", zone, attest.Observed)
	f.set("host.locale", pairs(h.read("etc/default/locale"), "=")["LANG"], attest.Observed)
}

// computing are packages whose code computes answers, by the beginning of their
// names: of Debian's packages, and of Python's.
var (
	computing = []string{"libc6", "libgomp1", "libopenblas", "libblas", "libmkl", "intel-mkl", "libonednn", "libdnnl", "libonnxruntime", "libcudnn", "libcublas", "libnccl", "cuda-cudart", "libnvinfer", "rocm-core", "rocblas", "miopen", "hipblas", "migraphx"}
	python    = []string{"numpy", "scipy", "torch", "onnxruntime", "onnxruntime_gpu", "tensorflow", "jax", "jaxlib", "vllm", "sglang", "transformers", "tokenizers", "scikit_learn", "xgboost", "lightgbm", "tritonclient", "mlserver"}
)

func (h Host) libraries(ctx context.Context, f Fields) {
	installed := false
	name := ""
	for line := range strings.Lines(h.read("var/lib/dpkg/status")) {
		k, v, _ := strings.Cut(strings.TrimRight(line, "\n"), ": ")
		switch k {
		case "Package":
			name, installed = v, false
		case "Status":
			installed = v == "install ok installed"
		case "Version":
			if installed && slices.ContainsFunc(computing, func(p string) bool { return strings.HasPrefix(name, p) }) && !strings.HasSuffix(name, "-dev") {
				f.set("library."+name, v, attest.Observed)
			}
		}
	}
	for _, pattern := range []string{"usr/lib/python3*/*-packages/*.dist-info", "usr/local/lib/python3*/*-packages/*.dist-info", "opt/*/lib/python3*/site-packages/*.dist-info"} {
		found, err := fs.Glob(h.Root, pattern)
		if err != nil {
			continue // the pattern is a constant
		}
		for _, dir := range found {
			name, version, ok := strings.Cut(strings.TrimSuffix(path.Base(dir), ".dist-info"), "-")
			if ok && slices.Contains(python, strings.ToLower(name)) {
				f.set("library.python."+strings.ToLower(name), version, attest.Observed)
			}
		}
	}
	if _, ok := f["library.libc6"]; !ok {
		line := ""
		if raw, err := h.Run(ctx, "ldd", "--version"); err == nil {
			line, _, _ = strings.Cut(string(raw), "\n")
		}
		f.set("library.libc", line, attest.Observed)
	}
}

// switches are settings that change numbers, by what they are about.
var switches = map[string][]string{
	"threads":     {"OMP_NUM_THREADS", "OMP_DYNAMIC", "OMP_PROC_BIND", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "GOMAXPROCS", "ORT_INTRA_OP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"},
	"precision":   {"NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "ORT_CUDA_USE_TF32", "MKL_CBWR", "ONEDNN_DEFAULT_FPMATH_MODE", "JAX_DEFAULT_MATMUL_PRECISION", "XLA_FLAGS"},
	"determinism": {"CUBLAS_WORKSPACE_CONFIG", "VLLM_BATCH_INVARIANT", "TF_DETERMINISTIC_OPS", "PYTHONHASHSEED", "CUDA_LAUNCH_BLOCKING", "MIOPEN_DEBUG_CONV_DIRECT"},
	"device":      {"CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"},
	"host":        {"TZ", "LANG", "LC_ALL"},
}

// secret marks words of a command line that are not to be written down.
var secret = []string{"key", "token", "secret", "password"}

// process looks at the process that serves the model.
func (h Host) process(ctx context.Context, f Fields) {
	set := map[string]string{}
	known := false
	dir := "proc/" + strconv.Itoa(h.PID)
	if h.PID > 0 {
		raw, err := fs.ReadFile(h.Root, dir+"/environ")
		known = err == nil
		for _, entry := range strings.Split(string(raw), "\x00") {
			if k, v, ok := strings.Cut(entry, "="); ok {
				set[k] = v
			}
		}
	}
	for about, names := range switches {
		for _, n := range names {
			field := about + "." + n
			v, ok := set[n]
			switch {
			case !known:
				f.set(field, "", attest.Observed)
			case !ok:
				f.set(field, "not set", attest.Observed)
			case v == "":
				f.set(field, "empty", attest.Observed)
			default:
				f.set(field, v, attest.Observed)
			}
		}
	}
	if h.PID <= 0 {
		f.set("serving.command", "", attest.Observed)
		f.set("container.image", "", attest.Observed)
		return
	}
	var words []string
	hide := false
	for _, w := range strings.Split(strings.TrimRight(h.read(dir+"/cmdline"), "\x00"), "\x00") {
		k, _, assigned := strings.Cut(w, "=")
		holds := strings.HasPrefix(w, "-") && slices.ContainsFunc(secret, func(s string) bool { return strings.Contains(strings.ToLower(k), s) })
		switch {
		case hide:
			w = "…"
		case holds && assigned:
			w = k + "=…"
		}
		hide = holds && !assigned
		words = append(words, w)
	}
	f.set("serving.command", strings.Join(words, " "), attest.Observed)
	// The container's id is the last part of the control group's path.
	group := path.Base(strings.TrimSpace(h.read(dir + "/cgroup")))
	id := strings.TrimSuffix(strings.TrimPrefix(strings.TrimPrefix(group, "docker-"), "libpod-"), ".scope")
	image := ""
	if len(id) == 64 && strings.Trim(id, "0123456789abcdef") == "" {
		for _, engine := range []string{"docker", "podman"} {
			if raw, err := h.Run(ctx, engine, "inspect", "--format", "{{.Image}}", id); err == nil {
				image = strings.TrimSpace(string(raw))
				break
			}
		}
	}
	f.set("container.image", image, attest.Observed)
}

// Local collects what can be seen of the machine this runs on, with the process
// that serves the model if pid is not 0.
func Local(ctx context.Context, pid int) Fields {
	f := Collect(ctx, ThisMachine(pid))
	if f["machine"].Value == "" {
		f.set("machine", runtime.GOARCH, attest.Observed)
	}
	return f
}
