package fingerprint

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"path"
	"strconv"
	"strings"
)

func notInstalled(err error) bool { return errors.Is(err, exec.ErrNotFound) }

// parseKFD reads the properties of a node of the KFD topology: a name and a
// number a line (Linux, drivers/gpu/drm/amd/amdkfd/kfd_topology.c).
func parseKFD(raw []byte) (map[string]uint64, error) {
	properties := map[string]uint64{}
	for line := range strings.Lines(string(raw)) {
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		if len(fields) != 2 {
			return nil, fmt.Errorf("%.80q is no name and number", line)
		}
		n, err := strconv.ParseUint(fields[1], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%.80q is no name and number", line)
		}
		if _, ok := properties[fields[0]]; ok {
			return nil, fmt.Errorf("%.40q is there twice", fields[0])
		}
		properties[fields[0]] = n
	}
	return properties, nil
}

// gfx writes gfx_target_version as compilers do: 90402 is gfx942, and 90010 is
// gfx90a.
func gfx(version uint64) string {
	return fmt.Sprintf("gfx%d%x%x", version/10000, version/100%100, version%100)
}

const (
	kfdNodes    = "sys/class/kfd/kfd/topology/nodes"
	maxKFDNodes = 1024
)

func amd(ctx context.Context, m *Machine, f Fields) {
	entries, err := fs.ReadDir(m.Root, kfdNodes)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			f.missing("gpu", err.Error())
			f.missing("amd.gpu", err.Error())
		}
		return
	}
	lists := map[string][]string{}
	fields := []struct {
		name  string
		value func(p map[string]uint64) string
	}{
		{"amd.gpu", func(p map[string]uint64) string { return gfx(p["gfx_target_version"]) }},
		{"amd.device", func(p map[string]uint64) string { return fmt.Sprintf("%04x:%04x", p["vendor_id"], p["device_id"]) }},
		{"amd.firmware", func(p map[string]uint64) string {
			return fmt.Sprintf("fw %d sdma %d", p["fw_version"], p["sdma_fw_version"])
		}},
		{"amd.compute", func(p map[string]uint64) string {
			return fmt.Sprintf("%d simds, %d xcc, waves of %d", p["simd_count"], p["num_xcc"], p["wave_front_size"])
		}},
	}
	for _, e := range entries[:min(len(entries), maxKFDNodes)] {
		file := path.Join(kfdNodes, e.Name(), "properties")
		raw, err := m.read(file)
		var p map[string]uint64
		if err == nil {
			p, err = parseKFD(raw)
		}
		if err != nil {
			err = fmt.Errorf("/%s: %w", file, err)
			f.missing("gpu", err.Error())
			f.missing("amd.gpu", err.Error())
			return
		}
		if p["gfx_target_version"] == 0 {
			continue // a node of processors
		}
		for _, field := range fields {
			lists[field.name] = append(lists[field.name], field.value(p))
		}
	}
	if len(lists) == 0 {
		return // the driver is there, and no GPU
	}
	for _, field := range fields {
		f.observed(field.name, counted(lists[field.name], field.name == "amd.gpu"), "")
	}
	f.observed("gpu", "amd "+f["amd.gpu"].Value, "")

	driver, err := m.line("sys/module/amdgpu/version")
	if errors.Is(err, fs.ErrNotExist) {
		err = errors.New("amdgpu is the one of the kernel, which has no version of its own")
	}
	f.observed("amd.driver", majorMinor(driver), reason(err, "the driver does not say"))
	rocm, err := m.line("opt/rocm/.info/version")
	f.observed("amd.rocm", majorMinor(rocm), reason(err, "/opt/rocm/.info/version is empty"))
	var patches []string
	if driver != "" {
		patches = append(patches, "amdgpu "+driver)
	}
	if rocm != "" {
		patches = append(patches, "rocm "+rocm)
	}
	if len(patches) > 0 {
		f.observed(driverPatch, strings.Join(patches, ", "), "")
	}

	raw, err := m.run(ctx, "amd-smi", "static", "--json")
	var gpus []amdGPU
	if err == nil {
		gpus, err = parseAMD(raw)
	}
	for _, field := range amdFields {
		var list []string
		for _, g := range gpus {
			list = append(list, said(field.value(g)))
		}
		f.observed(field.name, counted(list, false), reason(err, "amd-smi does not say"))
	}
}

// An amdGPU is what amd-smi static --json prints of a GPU. What a part is
// called differs between versions; what is not there, or has another type,
// is left empty.
type amdGPU struct {
	ASIC struct {
		MarketName text `json:"market_name"`
		RevID      text `json:"rev_id"`
	} `json:"asic"`
	VBIOS     amdVBIOS `json:"vbios"` // until ROCm 6
	IFWI      amdVBIOS `json:"ifwi"`  // from ROCm 7 on
	Partition struct {
		Compute     text `json:"compute_partition"`
		Accelerator text `json:"accelerator_partition"`
		Memory      text `json:"memory_partition"`
	} `json:"partition"`
	RAS struct {
		ECC struct {
			UMC text `json:"UMC"` // the memory controllers
		} `json:"ecc_block_state"`
	} `json:"ras"`
	VRAM struct {
		Type text            `json:"type"`
		Size json.RawMessage `json:"size"`
	} `json:"vram"`
}

type amdVBIOS struct {
	PartNumber text `json:"part_number"`
	Version    text `json:"version"`
}

// A text is a JSON string or number as text, and "" for everything else.
type text string

func (t *text) UnmarshalJSON(raw []byte) error {
	var s string
	var n json.Number
	switch {
	case json.Unmarshal(raw, &s) == nil:
		*t = text(s)
	case json.Unmarshal(raw, &n) == nil:
		*t = text(n)
	}
	return nil
}

func parseAMD(raw []byte) ([]amdGPU, error) {
	// A list, or from ROCm 7 on an object around it.
	var list []json.RawMessage
	if err := json.Unmarshal(raw, &list); err != nil {
		var object struct {
			GPUs []json.RawMessage `json:"gpu_data"`
		}
		if err := json.Unmarshal(raw, &object); err != nil {
			return nil, fmt.Errorf("what amd-smi static --json printed: %w", err)
		}
		list = object.GPUs
	}
	if len(list) == 0 {
		return nil, errors.New("what amd-smi static --json printed has no GPU in it")
	}
	var gpus []amdGPU
	for _, one := range list {
		// Each part by itself: where there is none, some print "N/A".
		var parts map[string]json.RawMessage
		if err := json.Unmarshal(one, &parts); err != nil {
			return nil, fmt.Errorf("what amd-smi static --json printed: %w", err)
		}
		var g amdGPU
		for name, to := range map[string]any{"asic": &g.ASIC, "vbios": &g.VBIOS, "ifwi": &g.IFWI, "partition": &g.Partition, "ras": &g.RAS, "vram": &g.VRAM} {
			if len(parts[name]) > 0 && parts[name][0] == '{' {
				if err := json.Unmarshal(parts[name], to); err != nil {
					return nil, fmt.Errorf("what amd-smi static --json printed: %s: %w", name, err)
				}
			}
		}
		gpus = append(gpus, g)
	}
	return gpus, nil
}

var amdFields = []struct {
	name  string
	value func(g amdGPU) string
}{
	{"amd.sku", func(g amdGPU) string { return joined(g.ASIC.MarketName, g.ASIC.RevID) }},
	{"amd.vbios", func(g amdGPU) string {
		return joined(g.VBIOS.PartNumber, g.VBIOS.Version, g.IFWI.PartNumber, g.IFWI.Version)
	}},
	{"amd.partition", func(g amdGPU) string {
		return joined(g.Partition.Compute, g.Partition.Accelerator, g.Partition.Memory)
	}},
	{"amd.ecc", func(g amdGPU) string { return string(g.RAS.ECC.UMC) }},
	{"amd.memory", func(g amdGPU) string {
		var size struct {
			Value text `json:"value"`
			Unit  text `json:"unit"`
		}
		if json.Unmarshal(g.VRAM.Size, &size) != nil {
			var plain text
			if len(g.VRAM.Size) > 0 && json.Unmarshal(g.VRAM.Size, &plain) == nil {
				size.Value = plain
			}
		}
		return joined(g.VRAM.Type, size.Value, size.Unit)
	}},
}

func joined(parts ...text) string {
	var list []string
	for _, p := range parts {
		if s := said(string(p)); s != "" {
			list = append(list, s)
		}
	}
	return strings.Join(list, " ")
}
