package fingerprint

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/assay-dev/assay/conformance/target"
	"github.com/assay-dev/assay/verify/attest"
)

var update = flag.Bool("update", false, "write the golden files anew")

// recorded is a machine in a txtar file: files by their paths; "environ" a
// setting a line; files whose names end in 0 have lines for what ends with a
// zero byte; "command: …" what a command prints.
func recorded(t testing.TB, name string) *Machine {
	t.Helper()
	archive, err := txtar.ParseFile(filepath.Join("testdata", name+".txtar"))
	if err != nil {
		t.Fatal(err)
	}
	files := fstest.MapFS{}
	commands := map[string][]byte{}
	m := &Machine{Root: files, Arch: "x86_64"}
	for _, f := range archive.Files {
		if command, ok := strings.CutPrefix(f.Name, "command: "); ok {
			commands[command] = f.Data
			continue
		}
		if f.Name == "environ" {
			m.Environ = strings.Split(strings.TrimSpace(string(f.Data)), "\n")
			continue
		}
		if zeros, ok := strings.CutSuffix(f.Name, "0"); ok && strings.HasPrefix(f.Name, "proc/") {
			f.Name, f.Data = zeros, bytes.ReplaceAll(f.Data, []byte("\n"), []byte{0})
		}
		files[f.Name] = &fstest.MapFile{Data: f.Data}
	}
	m.Run = func(_ context.Context, name string, args ...string) ([]byte, error) {
		if out, ok := commands[strings.Join(append([]string{name}, args...), " ")]; ok {
			return out, nil
		}
		return nil, exec.ErrNotFound
	}
	return m
}

// valid checks that an environment document can be made of the fields.
func valid(t testing.TB, f Fields) {
	t.Helper()
	e := attest.Environment{Name: "e", Target: attest.Target{Protocol: "p", URL: "u", Model: "m"}, Fingerprint: f, RecordedAt: time.Unix(1, 0)}
	if err := e.Validate(); err != nil {
		t.Error(err)
	}
	for k, v := range f {
		if v.Assurance == attest.Attested {
			t.Errorf("%s is said to be attested, which nothing here can", k)
		}
		if v.Assurance == attest.Unavailable && v.Reason == "" {
			t.Errorf("%s is unavailable, and nothing says why", k)
		}
	}
}

func TestRecordedMachines(t *testing.T) {
	for name, pid := range map[string]int{"cpu": 0, "h100": 4242, "mi300x": 0} {
		t.Run(name, func(t *testing.T) {
			m := recorded(t, name)
			m.PID = pid
			f := Collect(t.Context(), m)
			valid(t, f)
			raw, err := json.MarshalIndent(f, "", "\t")
			if err != nil {
				t.Fatal(err)
			}
			raw = append(raw, '\n')
			if bytes.Contains(raw, []byte("must-not-be-seen")) {
				t.Errorf("a secret got into the document:\n%s", raw)
			}
			golden := filepath.Join("testdata", name+".golden.json")
			if *update {
				if err := os.WriteFile(golden, raw, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(raw, want) {
				t.Errorf("it is not as in %s:\n%s", golden, raw)
			}
		})
	}
}

// What the golden files must have in them, whoever wrote them anew.
func TestWhatIsSeen(t *testing.T) {
	for _, tt := range []struct {
		machine, field string
		pid            int
		value          string
		known          attest.Assurance
	}{
		{"cpu", "cpu.count", 0, "2", attest.Observed},
		{"cpu", "cpu.quota", 0, "200000/100000", attest.Observed},
		{"cpu", "cpu.allowed", 0, "0-1", attest.Observed},
		{"cpu", "memory.bytes", 0, "16777478144", attest.Observed},
		{"cpu", "libc", 0, "glibc 2.36 (Debian GLIBC 2.36-9+deb12u10)", attest.Observed},
		{"cpu", "gpu", 0, "none", attest.Observed},
		{"cpu", "container", 0, "docker", attest.Observed},
		{"cpu", "container.image", 0, "sha256:9b2a0000000000000000000000000000000000000000000000000000000000c4", attest.Declared},
		{"cpu", "setting.OMP_NUM_THREADS", 0, `"2"`, attest.Declared},
		{"cpu", "region", 0, "eu-central-1", attest.Declared},
		{"cpu", "host.timezone", 0, "Europe/Berlin", attest.Observed},
		{"h100", "nvidia.gpu", 4242, "2 x NVIDIA H100 80GB HBM3", attest.Observed},
		{"h100", "nvidia.driver", 4242, "550.54", attest.Observed},
		{"h100", "driver.patch", 4242, "nvidia 550.54.15", attest.Observed},
		{"h100", "nvidia.cuda", 4242, "12.4", attest.Observed},
		{"h100", "nvidia.vbios", 4242, "96.00.89.00.01", attest.Observed},
		{"h100", "nvidia.mig", 4242, "Disabled", attest.Observed},
		{"h100", "nvidia.ecc", 4242, "Enabled", attest.Observed},
		{"h100", "nvidia.compute-capability", 4242, "9.0", attest.Observed},
		{"h100", "setting.NVIDIA_TF32_OVERRIDE", 4242, `"0"`, attest.Observed},
		{"h100", "setting.CUBLAS_WORKSPACE_CONFIG", 4242, `":4096:8"`, attest.Observed},
		{"h100", "setting.OMP_NUM_THREADS", 4242, "", ""}, // ours, not the server's
		{"h100", "cpu.quota", 4242, "6400000/100000", attest.Observed},
		{"h100", "container.image", 4242, "sha256:1111111111111111111111111111111111111111111111111111111111111111", attest.Observed},
		{"h100", "serving.command", 4242, "python3 -m vllm.entrypoints.openai.api_server --dtype=bfloat16 --api-key (not shown) --tensor-parallel-size 2", attest.Observed},
		{"h100", "library.loaded.libopenblas64_p-r0-0cf96a72.3.23.dev.so", 4242, "", attest.Unavailable},
		{"h100", "region.zone", 4242, "eu-west-1b", attest.Declared},
		{"mi300x", "amd.gpu", 0, "2 x gfx942", attest.Observed},
		{"mi300x", "gpu", 0, "amd 2 x gfx942", attest.Observed},
		{"mi300x", "amd.rocm", 0, "6.2", attest.Observed},
		{"mi300x", "driver.patch", 0, "amdgpu 6.8.5, rocm 6.2.4-66", attest.Observed},
		{"mi300x", "amd.partition", 0, "SPX NPS1", attest.Observed},
		{"mi300x", "amd.ecc", 0, "ENABLED", attest.Observed},
		{"mi300x", "cpu.quota", 0, "none", attest.Observed},
		{"mi300x", "container", 0, "none", attest.Observed},
	} {
		m := recorded(t, tt.machine)
		m.PID = tt.pid
		if got := Collect(t.Context(), m)[tt.field]; got.Value != tt.value || got.Assurance != tt.known {
			t.Errorf("%s: %s is %+v, want %q, %s", tt.machine, tt.field, got, tt.value, tt.known)
		}
	}
}

// Without any one of its files or commands a machine still has every field
// that it had, or says which it lost and why; and nothing else changes into
// what it was not.
func TestWhatIsMissingIsSaid(t *testing.T) {
	for name, pid := range map[string]int{"cpu": 0, "h100": 4242, "mi300x": 0} {
		whole := recorded(t, name)
		whole.PID = pid
		all := Collect(t.Context(), whole)
		for file := range whole.Root.(fstest.MapFS) {
			m := recorded(t, name)
			m.PID = pid
			delete(m.Root.(fstest.MapFS), file)
			f := Collect(t.Context(), m)
			valid(t, f)
			node := strings.HasSuffix(file, "/nodes/0/properties") // of processors
			if len(attest.Diff(attest.Environment{Fingerprint: all}, attest.Environment{Fingerprint: f})) == 0 && !idle[path.Base(file)] && !node {
				t.Errorf("%s: without %s nothing changes", name, file)
			}
		}
		m := recorded(t, name)
		m.PID, m.Run = pid, nil
		f := Collect(t.Context(), m)
		valid(t, f)
		if name == "h100" && (f["gpu"].Assurance != attest.Unavailable || f["nvidia.gpu"].Assurance != attest.Unavailable) {
			t.Errorf("a machine with the driver and without nvidia-smi has gpu %+v", f["gpu"])
		}
		if name == "mi300x" && (f["amd.sku"].Assurance != attest.Unavailable || f["amd.gpu"].Value != "2 x gfx942") {
			t.Errorf("without amd-smi: %+v %+v", f["amd.sku"], f["amd.gpu"])
		}
	}
}

// idle are files that say only that something is there, or what another says
// too.
var idle = map[string]bool{
	"localtime": true, "version": true, "cpu.cfs_quota_us": true, "cpu.cfs_period_us": true, "cgroup": true,
	"cpu.max": true, // of a group whose parent has the limit
}

// Nothing at all is there: every collector says so, and none falls over.
func TestAnEmptyMachine(t *testing.T) {
	f := Collect(t.Context(), &Machine{Root: fstest.MapFS{}})
	valid(t, f)
	for _, name := range []string{"kernel", "os", "cpu.model", "memory.bytes", "libc", "library.installed", "container", "container.image", "region", servingCommand} {
		if f[name].Assurance != attest.Unavailable {
			t.Errorf("%s is %+v", name, f[name])
		}
	}
}

// The machine that the test runs on, as it is, and with this process as the
// one that serves.
func TestThisMachine(t *testing.T) {
	for _, pid := range []int{0, os.Getpid()} {
		f := Collect(t.Context(), This(pid))
		valid(t, f)
		for _, name := range []string{"kernel", "machine", "cpu.count", "cpu.model", "memory.bytes", "container", "host.timezone"} {
			if f[name].Assurance != attest.Observed && f[name].Assurance != attest.Declared {
				t.Errorf("pid %d: %s is %+v", pid, name, f[name])
			}
		}
		if pid != 0 && !strings.Contains(f[servingCommand].Value, "test") {
			t.Errorf("the command line is %+v", f[servingCommand])
		}
		again := Collect(t.Context(), This(pid))
		for _, c := range attest.Diff(attest.Environment{Fingerprint: f}, attest.Environment{Fingerprint: again}) {
			t.Errorf("a machine that did not change: %+v", c)
		}
	}
}

// needed skips a test on a machine that lacks what it compares with, and fails it
// in CI, whose machine has it.
func needed(t *testing.T, why ...any) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatal(why...)
	}
	t.Skip(why...)
}

// The loader's cache, against the program that writes it.
func TestLoaderCache(t *testing.T) {
	m := This(0)
	raw, err := m.read("etc/ld.so.cache")
	if err != nil {
		needed(t, err)
	}
	out, err := exec.Command("/sbin/ldconfig", "-p").Output()
	if err != nil {
		needed(t, err)
	}
	var want []string
	kind := map[string]string{"x86_64": "x86-64", "aarch64": "AArch64"}[m.Arch]
	for _, line := range regexp.MustCompile(`\(([^)]*)\) => (\S+)`).FindAllStringSubmatch(string(out), -1) {
		if strings.Contains(line[1], kind) {
			want = append(want, line[2])
		}
	}
	got, err := loaderCache(raw, m.Arch)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%d files, %v; ldconfig -p has %d", len(got), err, len(want))
	}
}

// A build id, against readelf.
func TestBuildID(t *testing.T) {
	m := This(0)
	libc := "lib/" + m.Arch + "-linux-gnu/libm.so.6"
	if !m.exists(libc) {
		needed(t, "/"+libc+" is not there")
	}
	out, err := exec.Command("readelf", "-n", "/"+libc).Output()
	if err != nil {
		needed(t, "readelf:", err)
	}
	want := regexp.MustCompile(`Build ID: ([0-9a-f]+)`).FindSubmatch(out)
	if want == nil {
		needed(t, "it has none")
	}
	if got, err := m.library(libc); err != nil || got != "libm.so.6 build-id "+string(want[1]) {
		t.Errorf("%q, %v; readelf says %s", got, err, want[1])
	}
}

// Commands that hang, flood or fail end within the bounds.
func TestCommandsAreBounded(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := runCommand(ctx, "sleep", "60"); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 5*time.Second {
		t.Errorf("a command that hangs: %v after %v", err, time.Since(start))
	}
	m := This(0)
	if _, err := m.run(t.Context(), "head", "-c", fmt.Sprint(maxOutput+10), "/dev/zero"); err == nil || !strings.Contains(err.Error(), "printed more than") {
		t.Errorf("a command that floods: %v", err)
	}
	if _, err := m.run(t.Context(), "sh", "-c", "echo the driver is gone >&2; exit 9"); err == nil || !strings.Contains(err.Error(), "the driver is gone") {
		t.Errorf("a command that fails: %v", err)
	}
	if _, err := m.run(t.Context(), "assay-no-such-program"); !notInstalled(err) {
		t.Errorf("a command that is not there: %v", err)
	}
	m.Root = fstest.MapFS{"big": {Data: make([]byte, maxFile+1)}}
	if _, err := m.read("big"); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("a file that is too large: %v", err)
	}
	f := Fields{}
	f.observed("long", strings.Repeat("x", maxValue+1), "")
	if !strings.HasPrefix(f["long"].Value, "sha256:") {
		t.Errorf("a long value: %.40s", f["long"].Value)
	}
}

func TestOtherProcessors(t *testing.T) {
	arm := "processor\t: 0\nBogoMIPS\t: 243.75\nFeatures\t: fp asimd bf16 sve\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x1\nCPU part\t: 0xd40\nCPU revision\t: 1\n\nprocessor\t: 1\nFeatures\t: fp asimd bf16 sve\nCPU implementer\t: 0x41\nCPU variant\t: 0x1\nCPU part\t: 0xd40\nCPU revision\t: 1\n\nHardware\t: board\n"
	m := &Machine{Root: fstest.MapFS{"proc/cpuinfo": {Data: []byte(arm)}}}
	f := Collect(t.Context(), m)
	if f["cpu.count"].Value != "2" || f["cpu.model"].Value != "implementer 0x41 part 0xd40 variant 0x1 revision 1" || f["cpu.flags"].Value != "asimd bf16 fp sve" {
		t.Errorf("%+v %+v %+v", f["cpu.count"], f["cpu.model"], f["cpu.flags"])
	}
	if f["cpu.microcode"].Assurance != attest.Unavailable {
		t.Errorf("microcode %+v", f["cpu.microcode"])
	}
	// Cores of two sorts are both told.
	m.Root = fstest.MapFS{"proc/cpuinfo": {Data: []byte(strings.Replace(arm, "0xd40", "0xd4f", 1))}}
	if v := Collect(t.Context(), m)["cpu.model"].Value; !strings.Contains(v, "0xd40") || !strings.Contains(v, "0xd4f") {
		t.Errorf("two sorts of cores: %q", v)
	}
}

// GPUs that are not alike, and slices of one, are told apart.
func TestMIG(t *testing.T) {
	const gpu = `<gpu><product_name>NVIDIA H100</product_name><mig_mode><current_mig>Enabled</current_mig></mig_mode><mig_devices>%s</mig_devices></gpu>`
	const device = `<mig_device><index>0</index><device_attributes><shared><multiprocessor_count>%d</multiprocessor_count></shared></device_attributes><fb_memory_usage><total>%d MiB</total></fb_memory_usage></mig_device>`
	m := &Machine{Root: fstest.MapFS{}, Run: func(_ context.Context, name string, args ...string) ([]byte, error) {
		if name == "nvidia-smi" && args[0] == "-q" {
			return []byte("<nvidia_smi_log>" + fmt.Sprintf(gpu, fmt.Sprintf(device, 16, 11008)+fmt.Sprintf(device, 16, 11008)+fmt.Sprintf(device, 60, 40448)) + "<gpu><product_name>NVIDIA A100</product_name></gpu></nvidia_smi_log>"), nil
		}
		return nil, exec.ErrNotFound
	}}
	f := Collect(t.Context(), m)
	if f["nvidia.mig"].Value != "Enabled: 2 x 16 multiprocessors 11008 MiB, 1 x 60 multiprocessors 40448 MiB" {
		t.Errorf("MIG %+v", f["nvidia.mig"])
	}
	if f["nvidia.gpu"].Value != "1 x NVIDIA A100, 1 x NVIDIA H100" {
		t.Errorf("GPUs %+v", f["nvidia.gpu"])
	}
	if f["nvidia.compute-capability"].Assurance != attest.Unavailable {
		t.Errorf("%+v", f["nvidia.compute-capability"])
	}
	valid(t, f)
}

func TestGFX(t *testing.T) {
	for version, want := range map[uint64]string{90402: "gfx942", 90010: "gfx90a", 110000: "gfx1100", 90500: "gfx950", 100302: "gfx1032"} {
		if got := gfx(version); got != want {
			t.Errorf("gfx(%d) = %s, want %s", version, got, want)
		}
	}
}

// What newer amd-smi prints, and what it prints where it knows nothing.
func TestAMDSMI(t *testing.T) {
	gpus, err := parseAMD([]byte(`{"gpu_data":[{"asic":{"market_name":"AMD Instinct MI355X","rev_id":0},"ifwi":{"part_number":"113-M355","version":"1.2"},"ras":"N/A","vram":{"type":"HBM3E","size":294896}}]}`))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range amdFields {
		got = append(got, f.value(gpus[0]))
	}
	if want := []string{"AMD Instinct MI355X 0", "113-M355 1.2", "", "", "HBM3E 294896"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	for _, bad := range []string{"", "3", "[]", "{}", `[3]`, `{"gpu_data":3}`, `{"gpu_data":[null]}x`} {
		if _, err := parseAMD([]byte(bad)); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestServerSaysNothing(t *testing.T) {
	f := Declared(target.Description{Server: "s", Parameters: map[string]string{"a": "1", "b": ""}})
	valid(t, f)
	if f["serving.version"].Assurance != attest.Unavailable || f["serving.parameter.a"].Value != "1" {
		t.Errorf("%+v", f)
	}
	f[servingCommand] = attest.FingerprintField{Value: "x", Assurance: attest.Observed}
	silent := Silent(f, errors.New("connection refused"))
	valid(t, silent)
	if silent["serving.name"].Reason != "connection refused" {
		t.Errorf("%+v", silent)
	}
	if _, ok := silent[servingCommand]; ok {
		t.Error("a server that does not answer takes its command line with it")
	}
}

// The metadata services, as their documentation has them, over HTTP.
func TestInstanceMetadata(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Host != "169.254.169.254":
			http.Error(w, "another host", http.StatusTeapot)
		case r.Method == "PUT" && r.URL.Path == "/latest/api/token" && r.Header.Get("X-aws-ec2-metadata-token-ttl-seconds") != "":
			fmt.Fprint(w, "T")
		case r.URL.Path == "/latest/meta-data/placement/region" && r.Header.Get("X-aws-ec2-metadata-token") == "T":
			fmt.Fprint(w, "eu-central-1")
		case r.URL.Path == "/latest/meta-data/placement/availability-zone" && r.Header.Get("X-aws-ec2-metadata-token") == "T":
			fmt.Fprint(w, "eu-central-1a")
		case r.URL.Path == "/computeMetadata/v1/instance/zone" && r.Header.Get("Metadata-Flavor") == "Google":
			fmt.Fprint(w, "projects/1/zones/europe-west4-a")
		case r.URL.Path == "/metadata/instance/compute" && r.Header.Get("Metadata") == "true" && r.URL.Query().Get("api-version") != "":
			fmt.Fprint(w, `{"location":"westeurope","zone":"2"}`)
		default:
			http.NotFound(w, r)
		}
	}))
	defer server.Close()
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, server.Listener.Addr().String())
	}}}
	for cloud, want := range map[string]string{"aws": "eu-central-1 eu-central-1a", "gcp": "europe-west4 europe-west4-a", "azure": "westeurope 2"} {
		ask, err := InstanceMetadata(client, cloud)
		if err != nil {
			t.Fatal(err)
		}
		m := &Machine{Root: fstest.MapFS{}, Metadata: ask}
		f := Collect(t.Context(), m)
		if got := f["region"].Value + " " + f["region.zone"].Value; got != want || f["region"].Assurance != attest.Declared {
			t.Errorf("%s: %q, want %q", cloud, got, want)
		}
	}
	server.Close()
	ask, _ := InstanceMetadata(client, "aws")
	if f := Collect(t.Context(), &Machine{Root: fstest.MapFS{}, Metadata: ask}); f["region"].Assurance != attest.Unavailable || !strings.Contains(f["region"].Reason, "aws") {
		t.Errorf("nobody answers: %+v", f["region"])
	}
	if _, err := InstanceMetadata(nil, "mainframe"); err == nil {
		t.Error("a cloud that is not known is asked")
	}
}

func FuzzNVIDIA(f *testing.F) {
	out, err := recorded(f, "h100").Run(f.Context(), "nvidia-smi", "-q", "-x")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(out)
	f.Add([]byte(`<nvidia_smi_log><gpu><mig_devices><mig_device/></mig_devices></gpu></nvidia_smi_log>`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		m := &Machine{Root: fstest.MapFS{}, Run: func(context.Context, string, ...string) ([]byte, error) { return raw, nil }}
		fields := Collect(t.Context(), m)
		valid(t, fields)
		if log, err := parseNVIDIA(raw); err == nil && len(log.GPUs) == 0 {
			t.Error("a log without a GPU is taken")
		}
	})
}

func FuzzKFD(f *testing.F) {
	raw, err := fs.ReadFile(recorded(f, "mi300x").Root, kfdNodes+"/1/properties")
	if err != nil {
		f.Fatal(err)
	}
	smi, err := recorded(f, "mi300x").Run(f.Context(), "amd-smi", "static", "--json")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw, smi)
	f.Add([]byte("gfx_target_version 18446744073709551615\n"), []byte(`[{"vram":{"size":{"value":[]}}}]`))
	f.Fuzz(func(t *testing.T, raw, smi []byte) {
		m := &Machine{
			Root: fstest.MapFS{kfdNodes + "/0/properties": {Data: raw}},
			Run:  func(context.Context, string, ...string) ([]byte, error) { return smi, nil },
		}
		fields := Collect(t.Context(), m)
		valid(t, fields)
		p, err := parseKFD(raw)
		if (err != nil || p["gfx_target_version"] != 0) && fields["amd.gpu"] == (attest.FingerprintField{}) {
			t.Error("a node is passed over in silence")
		}
	})
}

func FuzzLoaderCache(f *testing.F) {
	if raw, err := os.ReadFile("/etc/ld.so.cache"); err == nil {
		f.Add(raw[:min(len(raw), 4096)])
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		paths, err := loaderCache(raw, "x86_64")
		if err != nil && paths != nil {
			t.Error("files and an error")
		}
	})
}
