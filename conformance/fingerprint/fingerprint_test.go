package fingerprint

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/assay-dev/assay/conformance/target"
	"github.com/assay-dev/assay/verify/attest"
)

var update = flag.Bool("update", false, "write the expected fields again")

// hosts are machines as files and the output of commands, written in the formats
// of kernel, nvidia-smi (v12 and v13) and amd-smi; what is expected of each is in
// testdata.
var hosts = map[string]struct {
	files    map[string]string
	commands map[string]string
	pid      int
}{
	"xeon-nvidia": {
		files: map[string]string{
			"proc/sys/kernel/osrelease": "6.8.0-60-generic\n", "proc/sys/kernel/arch": "x86_64\n",
			"proc/cpuinfo":   "processor\t: 0\nmodel name\t: Intel(R) Xeon(R) Platinum 8480C\nmicrocode\t: 0x2b000603\nflags\t\t: fpu avx512f avx2 amx_bf16\n\nprocessor\t: 1\nmodel name\t: Intel(R) Xeon(R) Platinum 8480C\nmicrocode\t: 0x2b000603\nflags\t\t: fpu avx512f avx2 amx_bf16\n",
			"proc/meminfo":   "MemTotal:       263874512 kB\nMemFree: 1 kB\n",
			"etc/os-release": "NAME=\"Ubuntu\"\nPRETTY_NAME=\"Ubuntu 24.04.2 LTS\"\n", "etc/timezone": "Etc/UTC\n", "etc/default/locale": "LANG=\"C.UTF-8\"\n",
			"sys/fs/cgroup/cpu.max": "800000 100000\n",
			"var/lib/dpkg/status":   "Package: libc6\nStatus: install ok installed\nVersion: 2.39-0ubuntu8\n\nPackage: libcudnn9-cuda-12\nStatus: install ok installed\nVersion: 9.1.0.70-1\n\nPackage: libopenblas0\nStatus: deinstall ok config-files\nVersion: 0.3.26\n\nPackage: vim\nStatus: install ok installed\nVersion: 2:9.1\n",
			"usr/local/lib/python3.12/dist-packages/torch-2.7.1+cu126.dist-info/METADATA": "", "usr/local/lib/python3.12/dist-packages/vllm-0.10.1.dist-info/METADATA": "", "usr/local/lib/python3.12/dist-packages/requests-2.32.dist-info/METADATA": "",
			"proc/41/environ": "PATH=/usr/bin\x00OMP_NUM_THREADS=8\x00NVIDIA_TF32_OVERRIDE=0\x00VLLM_BATCH_INVARIANT=1\x00TZ=\x00API_TOKEN=hunter2\x00",
			"proc/41/cmdline": "python3\x00-m\x00vllm.entrypoints.openai.api_server\x00--dtype\x00bfloat16\x00--api-key\x00hunter2\x00--hf-token=hunter2\x00--tensor-parallel-size\x002\x00",
			"proc/41/cgroup":  "0::/system.slice/docker-" + strings.Repeat("ab", 32) + ".scope\n",
		},
		commands: map[string]string{
			"nvidia-smi -q -x": "<?xml version=\"1.0\" ?>\n<!DOCTYPE nvidia_smi_log SYSTEM \"nvsmi_device_v12.dtd\">\n<nvidia_smi_log><timestamp>Mon Mar  2 12:00:00 2026</timestamp><driver_version>550.127.08</driver_version><cuda_version>12.4</cuda_version><attached_gpus>2</attached_gpus>" +
				`<gpu id="00000000:5D:00.0"><product_name>NVIDIA H100 80GB HBM3</product_name><product_architecture>Hopper</product_architecture><vbios_version>96.00.99.00.01</vbios_version><mig_mode><current_mig>Disabled</current_mig><pending_mig>Disabled</pending_mig></mig_mode><ecc_mode><current_ecc>Enabled</current_ecc></ecc_mode><fb_memory_usage><total>81559 MiB</total><used>4 MiB</used></fb_memory_usage></gpu>` +
				`<gpu id="00000000:18:00.0"><product_name>NVIDIA H100 80GB HBM3</product_name><product_architecture>Hopper</product_architecture><vbios_version>96.00.99.00.01</vbios_version><mig_mode><current_mig>N/A</current_mig></mig_mode><ecc_mode><current_ecc>Disabled</current_ecc></ecc_mode><fb_memory_usage><total>81559 MiB</total></fb_memory_usage></gpu></nvidia_smi_log>`,
			"docker inspect --format {{.Image}} " + strings.Repeat("ab", 32): "sha256:" + strings.Repeat("cd", 32) + "\n",
		},
		pid: 41,
	},
	"epyc-amd": {
		files: map[string]string{
			"proc/sys/kernel/osrelease": "6.1.0-35-amd64\n", "proc/cpuinfo": "processor\t: 0\nmodel name\t: AMD EPYC 9654 96-Core Processor\nflags\t\t: fpu avx2 avx512_bf16\n\n",
			"proc/meminfo": "MemTotal: 1585218796 kB\n", "opt/rocm/.info/version": "6.2.4-139\n", "sys/module/amdgpu/version": "6.8.5\n",
			"sys/class/kfd/kfd/topology/nodes/0/properties":  "cpu_cores_count 192\nsimd_count 0\ngfx_target_version 0\nvendor_id 0\n",
			"sys/class/kfd/kfd/topology/nodes/10/properties": "cpu_cores_count 0\nsimd_count 1216\ngfx_target_version 90402\nvendor_id 4098\ndevice_id 29857\nfw_version 177\nunique_id 7\n",
			"sys/class/kfd/kfd/topology/nodes/2/properties":  "cpu_cores_count 0\nsimd_count 1216\ngfx_target_version 90402\nvendor_id 4098\ndevice_id 29857\nfw_version 166\nunique_id 8\n",
		},
		commands: map[string]string{
			"amd-smi static --json": `{"gpu_data":[{"gpu":0,"asic":{"market_name":"AMD Instinct MI300X","num_compute_units":304,"target_graphics_version":"gfx942"},"vbios":{"name":"AMD MI300X","version":"022.040.003.043.000001"},"driver":{"name":"amdgpu","version":"6.8.5"}},{"gpu":1,"asic":{"market_name":"AMD Instinct MI300X","target_graphics_version":"gfx942"},"vbios":{"version":"N/A"}}]}`,
			"ldd --version":         "ldd (Debian GLIBC 2.36-9+deb12u10) 2.36\nCopyright\n",
		},
	},
	"arm-plain": {
		files: map[string]string{
			"proc/sys/kernel/osrelease": "6.12.9\n", "proc/sys/kernel/arch": "aarch64\n",
			"proc/cpuinfo": "processor\t: 0\nBogoMIPS\t: 2100.00\nFeatures\t: fp asimd bf16 i8mm\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: 0xd4f\nCPU revision\t: 1\n\n",
		},
		pid: 7, // of which nothing can be read
	},
	"nothing": {},
}

func host(t *testing.T, name string) Host {
	m := fstest.MapFS{}
	for k, v := range hosts[name].files {
		m[k] = &fstest.MapFile{Data: []byte(v)}
	}
	if name == "arm-plain" {
		m["etc/localtime"] = &fstest.MapFile{Data: []byte("/usr/share/zoneinfo/Europe/Berlin"), Mode: fs.ModeSymlink}
	}
	return Host{Root: m, PID: hosts[name].pid, Run: func(_ context.Context, command string, args ...string) ([]byte, error) {
		if out, ok := hosts[name].commands[strings.Join(append([]string{command}, args...), " ")]; ok {
			return []byte(out), nil
		}
		return nil, errors.New("not found")
	}}
}

func TestRecordedHosts(t *testing.T) {
	var asked []string
	for name := range hosts {
		f := Collect(t.Context(), host(t, name))
		raw, err := json.MarshalIndent(f, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join("testdata", name+".json")
		if *update {
			if err := os.WriteFile(file, append(raw, '\n'), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil || string(want) != string(raw)+"\n" {
			t.Errorf("%s (%v):\n%s", name, err, raw)
		}
		if strings.Contains(string(raw), "hunter2") {
			t.Errorf("%s: a secret is in the fingerprint", name)
		}
		e := attest.Environment{Name: "x", Target: attest.Target{Protocol: "p", URL: "u", Model: "m"}, Fingerprint: f, RecordedAt: time.Now()}
		if err := e.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if name == "nothing" {
			asked = slices.Collect(maps.Keys(f))
			for k, v := range f {
				if v.Assurance != attest.Unavailable {
					t.Errorf("of nothing, %s is %+v", k, v)
				}
			}
		}
		if again := Collect(t.Context(), host(t, name)); !maps.Equal(f, again) {
			t.Errorf("%s: another look gives another fingerprint", name)
		}
	}
	// What is asked for and not to be had is in every fingerprint.
	for name := range hosts {
		f := Collect(t.Context(), host(t, name))
		for _, k := range asked {
			if _, ok := f[k]; !ok && k != "library.libc" {
				t.Errorf("%s has no %s, not even as unavailable", name, k)
			}
		}
	}
	if len(asked) < 40 {
		t.Errorf("%d fields", len(asked))
	}
}

// A change voids what it must, and says why in words of its own.
func TestWhatAChangeVoids(t *testing.T) {
	base := Collect(t.Context(), host(t, "xeon-nvidia"))
	for name, tc := range map[string]struct {
		file, old, new string
		field          string
		trigger        attest.Trigger
	}{
		"another microcode": {"proc/cpuinfo", "0x2b000603", "0x2b000620", "cpu.microcode", attest.Hard}, "no AMX": {"proc/cpuinfo", " amx_bf16", "", "cpu.flags", attest.Hard},
		"another kernel": {"proc/sys/kernel/osrelease", "6.8.0-60", "6.8.0-62", "kernel", attest.Soft}, "TF32 allowed": {"proc/41/environ", "NVIDIA_TF32_OVERRIDE=0", "NVIDIA_TF32_OVERRIDE=1", "precision.NVIDIA_TF32_OVERRIDE", attest.Hard},
		"fewer threads": {"proc/41/environ", "OMP_NUM_THREADS=8", "OMP_NUM_THREADS=4", "threads.OMP_NUM_THREADS", attest.Hard}, "another cuDNN": {"var/lib/dpkg/status", "9.1.0.70", "9.2.0.82", "library.libcudnn9-cuda-12", attest.Hard},
		"int8": {"proc/41/cmdline", "bfloat16", "int8", "serving.command", attest.Hard}, "another zone": {"etc/timezone", "Etc/UTC", "Asia/Kolkata", "host.timezone", attest.Soft},
	} {
		h := host(t, "xeon-nvidia")
		m := h.Root.(fstest.MapFS)
		m[tc.file] = &fstest.MapFile{Data: []byte(strings.ReplaceAll(string(m[tc.file].Data), tc.old, tc.new))}
		changes := attest.Diff(attest.Environment{Fingerprint: base}, attest.Environment{Fingerprint: Collect(t.Context(), h)})
		if len(changes) != 1 || changes[0].Field != tc.field || changes[0].Trigger != tc.trigger || changes[0].Why == "" {
			t.Errorf("%s: %+v", name, changes)
		}
	}
	// A patch of a driver is told apart from another driver.
	for version, want := range map[string][]string{"550.127.09": {"driver.patch.nvidia soft"}, "560.35.03": {"driver.patch.nvidia soft", "nvidia.driver hard"}} {
		h := host(t, "xeon-nvidia")
		run := h.Run
		h.Run = func(ctx context.Context, name string, args ...string) ([]byte, error) {
			out, err := run(ctx, name, args...)
			return []byte(strings.Replace(string(out), "550.127.08", version, 1)), err
		}
		var got []string
		for _, c := range attest.Diff(attest.Environment{Fingerprint: base}, attest.Environment{Fingerprint: Collect(t.Context(), h)}) {
			got = append(got, c.Field+" "+string(c.Trigger))
		}
		if !slices.Equal(got, want) {
			t.Errorf("driver %s: %v", version, got)
		}
	}
}

// This machine, as it is.
func TestThisMachine(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the files are Linux's")
	}
	f := Local(t.Context(), os.Getpid())
	for _, k := range []string{"kernel", "machine", "cpu.model", "cpu.flags", "cpu.count", "memory.gib", "serving.command"} {
		if f[k].Assurance != attest.Observed || f[k].Value == "" {
			t.Errorf("%s is %+v", k, f[k])
		}
	}
	if v := f["threads.OMP_NUM_THREADS"]; v.Assurance != attest.Observed {
		t.Errorf("the settings of this process: %+v", v)
	}
	if v := Local(t.Context(), 0)["threads.OMP_NUM_THREADS"]; v.Assurance != attest.Unavailable {
		t.Errorf("the settings of no process: %+v", v)
	}
}

func TestDeclared(t *testing.T) {
	f := Declared(target.Description{Server: "triton", ServerVersion: "2.50", Parameters: map[string]string{"precision": "fp16"}})
	if f["serving.name"] != (attest.FingerprintField{Value: "triton", Assurance: attest.Declared}) || f["serving.parameter.precision"].Value != "fp16" || f["serving.platform"].Assurance != attest.Unavailable {
		t.Errorf("%+v", f)
	}
}
