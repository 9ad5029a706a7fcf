package fingerprint

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"strings"
)

// An nvidiaLog is what nvidia-smi -q -x prints, as far as it says what a GPU
// is and how it is set: not how warm or how busy it is. The elements are those
// of nvsmi_device_v11.dtd to v13.dtd, which nvidia-smi -q -x --dtd prints.
type nvidiaLog struct {
	XMLName xml.Name    `xml:"nvidia_smi_log"`
	Driver  string      `xml:"driver_version"`
	CUDA    string      `xml:"cuda_version"`
	GPUs    []nvidiaGPU `xml:"gpu"`
}

type nvidiaGPU struct {
	Name         string `xml:"product_name"`
	Architecture string `xml:"product_architecture"`
	Capability   string `xml:"compute_cap"` // not in every version
	VBIOS        string `xml:"vbios_version"`
	BoardPart    string `xml:"board_part_number"`
	GPUPart      string `xml:"gpu_part_number"`
	PCIDevice    string `xml:"pci>pci_device_id"`
	PCISubsystem string `xml:"pci>pci_sub_system_id"`
	Memory       string `xml:"fb_memory_usage>total"`
	ECC          string `xml:"ecc_mode>current_ecc"`
	MIG          string `xml:"mig_mode>current_mig"`
	Virtual      string `xml:"gpu_virtualization_mode>virtualization_mode"`
	MIGDevices   []struct {
		Multiprocessors string `xml:"device_attributes>shared>multiprocessor_count"`
		Memory          string `xml:"fb_memory_usage>total"`
	} `xml:"mig_devices>mig_device"`
}

func parseNVIDIA(raw []byte) (*nvidiaLog, error) {
	var log nvidiaLog
	if err := xml.Unmarshal(raw, &log); err != nil {
		return nil, fmt.Errorf("what nvidia-smi -q -x printed: %w", err)
	}
	if len(log.GPUs) == 0 {
		return nil, errors.New("what nvidia-smi -q -x printed has no GPU in it")
	}
	return &log, nil
}

// nvidiaFields are the fields of a machine with NVIDIA GPUs.
var nvidiaFields = []struct {
	name  string
	value func(g nvidiaGPU) string
}{
	{"nvidia.gpu", func(g nvidiaGPU) string { return g.Name }},
	{"nvidia.architecture", func(g nvidiaGPU) string { return g.Architecture }},
	{"nvidia.vbios", func(g nvidiaGPU) string { return g.VBIOS }},
	{"nvidia.sku", func(g nvidiaGPU) string {
		return strings.Join(strings.Fields(said(g.BoardPart)+" "+said(g.GPUPart)+" "+said(g.PCIDevice)+" "+said(g.PCISubsystem)), " ")
	}},
	{"nvidia.memory", func(g nvidiaGPU) string { return g.Memory }},
	{"nvidia.ecc", func(g nvidiaGPU) string { return g.ECC }},
	{"nvidia.mig", func(g nvidiaGPU) string {
		if len(g.MIGDevices) == 0 {
			return g.MIG
		}
		var list []string
		for _, d := range g.MIGDevices {
			list = append(list, fmt.Sprintf("%s multiprocessors %s", d.Multiprocessors, d.Memory))
		}
		return g.MIG + ": " + counted(list, true)
	}},
	{"nvidia.virtualization", func(g nvidiaGPU) string { return g.Virtual }},
}

// said is "" for the ways in which nvidia-smi says nothing.
func said(v string) string {
	switch v = strings.TrimSpace(v); v {
	case "N/A", "[N/A]", "[Not Supported]", "Unknown Error", "Requested functionality has been deprecated":
		return ""
	}
	return v
}

func nvidia(ctx context.Context, m *Machine, f Fields) {
	raw, err := m.run(ctx, "nvidia-smi", "-q", "-x")
	if err != nil {
		// A machine without the driver has nothing to say; one with it, or
		// whose tool fails, has something that we do not know.
		if m.exists("proc/driver/nvidia/version") || !notInstalled(err) {
			f.missing("gpu", err.Error())
			f.missing("nvidia.gpu", err.Error())
		}
		return
	}
	log, err := parseNVIDIA(raw)
	if err != nil {
		f.missing("gpu", err.Error())
		f.missing("nvidia.gpu", err.Error())
		return
	}
	const silent = "nvidia-smi does not say"
	f.observed("nvidia.driver", majorMinor(said(log.Driver)), silent)
	if v := said(log.Driver); v != "" {
		f.observed(driverPatch, "nvidia "+v, "")
	}
	f.observed("nvidia.cuda", majorMinor(said(log.CUDA)), silent)
	for _, field := range nvidiaFields {
		var list []string
		for _, g := range log.GPUs {
			list = append(list, said(field.value(g)))
		}
		f.observed(field.name, counted(list, field.name == "nvidia.gpu"), silent)
	}
	f.observed("gpu", f["nvidia.gpu"].Value, silent)

	var capabilities []string
	for _, g := range log.GPUs {
		capabilities = append(capabilities, said(g.Capability))
	}
	why := silent
	if counted(capabilities, false) == "" {
		raw, err := m.run(ctx, "nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
		why = reason(err, silent)
		capabilities = nil
		for _, v := range strings.Split(string(raw), "\n") {
			capabilities = append(capabilities, said(v))
		}
	}
	f.observed("nvidia.compute-capability", counted(capabilities, false), why)
}
