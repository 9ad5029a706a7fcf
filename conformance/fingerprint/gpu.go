package fingerprint

import (
	"context"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/assay-dev/assay/verify/attest"
)

// nvidiaLog is what "nvidia-smi -q -x" writes, less what changes from minute to
// minute.
type nvidiaLog struct {
	Driver string      `xml:"driver_version"`
	CUDA   string      `xml:"cuda_version"`
	GPUs   []nvidiaGPU `xml:"gpu"`
}

type nvidiaGPU struct {
	ID           string `xml:"id,attr"`
	Product      string `xml:"product_name"`
	Architecture string `xml:"product_architecture"`
	VBIOS        string `xml:"vbios_version"`
	MIG          string `xml:"mig_mode>current_mig"`
	ECC          string `xml:"ecc_mode>current_ecc"`
	Memory       string `xml:"fb_memory_usage>total"`
}

// nvidia asks nvidia-smi, and where there is none the driver's files.
func (h Host) nvidia(ctx context.Context, f Fields) {
	var log nvidiaLog
	raw, err := h.Run(ctx, "nvidia-smi", "-q", "-x")
	if err == nil {
		err = xml.Unmarshal(raw, &log)
	}
	if err == nil && log.Driver != "" {
		slices.SortFunc(log.GPUs, func(a, b nvidiaGPU) int { return strings.Compare(a.ID, b.ID) })
		f.driver("nvidia", log.Driver)
		f.set("nvidia.cuda", log.CUDA, attest.Observed)
		f.set("nvidia.count", strconv.Itoa(len(log.GPUs)), attest.Observed)
		for i, g := range log.GPUs {
			for k, v := range map[string]string{
				"product": g.Product, "architecture": g.Architecture, "vbios": g.VBIOS, "mig": g.MIG, "ecc": g.ECC, "memory": g.Memory,
			} {
				f.set(fmt.Sprintf("nvidia.%d.%s", i, k), known(v), attest.Observed)
			}
		}
		return
	}
	// "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 …"
	version := ""
	line, _, _ := strings.Cut(h.read("proc/driver/nvidia/version"), "\n")
	for _, w := range strings.Fields(line) {
		if strings.Count(w, ".") >= 1 && strings.Trim(w, "0123456789.") == "" {
			version = w
			break
		}
	}
	f.driver("nvidia", version)
	files, _ := fs.Glob(h.Root, "proc/driver/nvidia/gpus/*/information")
	count := ""
	if version != "" {
		count = strconv.Itoa(len(files))
	}
	f.set("nvidia.count", count, attest.Observed)
	f.set("nvidia.cuda", "", attest.Observed)
	for i, name := range files {
		f.set(fmt.Sprintf("nvidia.%d.product", i), pairs(h.read(name), ":")["Model"], attest.Observed)
	}
}

// driver sets a driver's version in two fields: a new major or minor version may
// bring other kernels; the whole one tells patches apart.
func (f Fields) driver(vendor, version string) {
	parts := strings.Split(version, ".")
	f.set(vendor+".driver", strings.Join(parts[:min(2, len(parts))], "."), attest.Observed)
	f.set("driver.patch."+vendor, version, attest.Observed)
}

// amdStatic is what "amd-smi static --json" writes of a GPU, in the parts that
// matter here.
type amdStatic struct {
	GPU  int `json:"gpu"`
	ASIC struct {
		Name     string `json:"market_name"`
		Graphics string `json:"target_graphics_version"`
	} `json:"asic"`
	VBIOS struct {
		Version string `json:"version"`
	} `json:"vbios"`
	Driver struct {
		Version string `json:"version"`
	} `json:"driver"`
}

// amd reads the topology that the kernel's driver shows without ROCm, ROCm's
// version, and what amd-smi knows beyond that.
func (h Host) amd(ctx context.Context, f Fields) {
	nodes, _ := fs.Glob(h.Root, "sys/class/kfd/kfd/topology/nodes/*/properties")
	slices.SortFunc(nodes, func(a, b string) int { return nodeNumber(a) - nodeNumber(b) })
	n := 0
	for _, name := range nodes {
		p := pairs(strings.ReplaceAll(h.read(name), " ", "\t"), "\t")
		if p["gfx_target_version"] == "" || p["gfx_target_version"] == "0" {
			continue // a processor
		}
		for k, field := range map[string]string{"gfx_target_version": "gfx", "device_id": "device", "simd_count": "simds", "fw_version": "firmware"} {
			f.set(fmt.Sprintf("amd.%d.%s", n, field), p[k], attest.Observed)
		}
		n++
	}
	count := ""
	if len(nodes) > 0 {
		count = strconv.Itoa(n)
	}
	f.set("amd.count", count, attest.Observed)
	f.set("amd.rocm", h.read("opt/rocm/.info/version"), attest.Observed)
	driver := h.read("sys/module/amdgpu/version")
	if raw, err := h.Run(ctx, "amd-smi", "static", "--json"); err == nil {
		for _, g := range amdList(raw) {
			for k, v := range map[string]string{"product": g.ASIC.Name, "target": g.ASIC.Graphics, "vbios": g.VBIOS.Version} {
				f.set(fmt.Sprintf("amd.%d.%s", g.GPU, k), known(v), attest.Observed)
			}
			if driver == "" {
				driver = known(g.Driver.Version)
			}
		}
	}
	f.driver("amd", driver)
}

// amdList reads both forms of the output: a list, or since ROCm 7 an object with
// the list under "gpu_data".
func amdList(raw []byte) []amdStatic {
	var list []amdStatic
	if json.Unmarshal(raw, &list) == nil {
		return list
	}
	var whole struct {
		GPUs []amdStatic `json:"gpu_data"`
	}
	if json.Unmarshal(raw, &whole) == nil {
		return whole.GPUs
	}
	return nil
}

// known is "" for what a tool says it does not know.
func known(v string) string {
	if v == "N/A" || v == "[N/A]" {
		return ""
	}
	return v
}

func nodeNumber(name string) int {
	n, _ := strconv.Atoi(path.Base(path.Dir(name)))
	return n
}
