package fingerprint

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/assay-dev/assay/verify/attest"
)

// imageVariables are where a deployment puts the digest of the image it runs,
// best first. Kubernetes' downward API does not know it, so manifests write it
// in, and so do image builds.
var imageVariables = []string{"CONTAINER_IMAGE_DIGEST", "IMAGE_DIGEST", "CONTAINER_IMAGE", "IMAGE_REF"}

// A container is named by 64 hexadecimal digits in the path of a control
// group, or of a mount that its runtime made.
var (
	containerID  = regexp.MustCompile(`(?:^|[/:-])([0-9a-f]{64})(?:\.scope|/|$|\s)`)
	imageDigest  = regexp.MustCompile(`sha256:[0-9a-f]{64}`)
	runtimeNames = []struct{ part, name string }{
		{"crio", "cri-o"}, {"libpod", "podman"}, {"cri-containerd", "containerd"}, {"docker", "docker"}, {"containerd", "containerd"}, {"kubepods", "kubernetes"}, {"lxc", "lxc"},
	}
)

// container finds out whether the server runs in a container, and of which
// image. Its id is not noted: every start makes a new one.
func container(ctx context.Context, m *Machine, f Fields) {
	groups, err := m.read(m.process("cgroup"))
	mounts, err2 := m.read(m.process("mountinfo"))
	if err := errors.Join(err, err2); err != nil {
		f.missing("container", err.Error())
		f.missing("container.image", err.Error())
		return
	}
	kind, id := "", ""
	for _, text := range []string{string(groups), mountSources(string(mounts))} {
		for _, r := range runtimeNames {
			if kind == "" && strings.Contains(text, r.part) {
				kind = r.name
			}
		}
		if found := containerID.FindStringSubmatch(text); found != nil && id == "" {
			id = found[1]
		}
	}
	root := ""
	if m.PID != 0 {
		root = m.process("root") + "/"
	}
	if kind == "" && m.exists(root+".dockerenv") {
		kind = "docker"
	}
	if kind == "" && m.exists(root+"run/.containerenv") {
		kind = "podman"
	}
	if v, _ := m.getenv("KUBERNETES_SERVICE_HOST"); v != "" {
		kind = "kubernetes"
	}
	if kind == "" {
		f.observed("container", "none", "")
		return
	}
	f.observed("container", kind, "")

	for _, name := range imageVariables {
		v, known := m.getenv(name)
		if d := imageDigest.FindString(v); d != "" {
			// A variable is what somebody wrote, whoever reads it.
			if known == attest.Observed {
				known = attest.Declared
			}
			f.set("container.image", d, known, "")
			return
		}
	}
	why := "a container does not see which image it was made from: set CONTAINER_IMAGE_DIGEST where it is deployed, or run this on its host with --pid"
	if id != "" && m.Run != nil {
		for _, inspect := range [][]string{
			{"docker", "inspect", "--format", "{{.Image}}", id},
			{"podman", "inspect", "--format", "{{.ImageDigest}}", id},
			{"crictl", "inspect", "--output", "go-template", "--template", "{{.status.imageRef}}", id},
		} {
			out, err := m.run(ctx, inspect[0], inspect[1:]...)
			if d := imageDigest.FindString(string(out)); err == nil && d != "" {
				f.observed("container.image", d, "")
				return
			}
			if err != nil && !notInstalled(err) {
				why = err.Error()
			}
		}
	}
	f.missing("container.image", why)
}

// mountSources are the lines of mountinfo that a container runtime makes: the
// root file system, and the files it lays over those of the image.
func mountSources(mountinfo string) string {
	var b strings.Builder
	for line := range strings.Lines(mountinfo) {
		// id parent major:minor root mount-point …
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		switch fields[4] {
		case "/etc/hostname", "/etc/hosts", "/etc/resolv.conf":
			b.WriteString(fields[3] + "\n")
		}
	}
	return b.String()
}

// regionVariables are how providers and deployments say where they run.
var (
	regionVariables = []string{"AWS_REGION", "AWS_DEFAULT_REGION", "GOOGLE_CLOUD_REGION", "CLOUDSDK_COMPUTE_REGION", "AZURE_REGION", "REGION_NAME", "FLY_REGION"}

	// podLabels is a file of the downward API, which has labels of the pod;
	// since Kubernetes 1.35 those of the topology are among them.
	podLabels = "etc/podinfo/labels"
)

// region is where the machine says that it is. Nobody is asked over the
// network unless the caller said so.
func region(ctx context.Context, m *Machine, f Fields) {
	if m.Metadata != nil {
		ctx, cancel := context.WithTimeout(ctx, commandTime)
		defer cancel()
		region, zone, err := m.Metadata(ctx)
		f.set("region", region, attest.Declared, reason(err, "the instance metadata service does not say"))
		f.set("region.zone", zone, attest.Declared, reason(err, "the instance metadata service does not say"))
		return
	}
	found := ""
	root := ""
	if m.PID != 0 {
		root = m.process("root") + "/"
	}
	if raw, err := m.read(root + podLabels); err == nil {
		for line := range strings.Lines(string(raw)) {
			k, v, _ := strings.Cut(strings.TrimSpace(line), "=")
			v = strings.Trim(v, `"`)
			switch k {
			case "topology.kubernetes.io/region":
				found = v
			case "topology.kubernetes.io/zone":
				f.set("region.zone", v, attest.Declared, "the label is empty")
			}
		}
	}
	for _, name := range regionVariables {
		if found == "" {
			found, _ = m.getenv(name)
		}
	}
	f.set("region", found, attest.Declared, "no variable and no pod label says; write it as a label (--label region=…), or ask the instance metadata service (--instance-metadata)")
}

// placeAndTime notes time zone and locale: both can get into what a server
// computes, through dates and through how numbers are read.
func placeAndTime(_ context.Context, m *Machine, f Fields) {
	root := ""
	if m.PID != 0 {
		root = m.process("root") + "/"
	}
	if zone, known := m.getenv("TZ"); zone != "" {
		f.set("host.timezone", zone, known, "")
	} else {
		f.observed("host.timezone", m.zone(root), "neither TZ nor /etc/localtime nor /etc/timezone says")
	}
	// locale(7): LC_ALL wins, then the category, then LANG.
	for _, name := range []string{"LC_ALL", "LC_NUMERIC", "LANG"} {
		if v, known := m.getenv(name); v != "" {
			f.set("host.locale", v, known, "")
			return
		}
	}
	if _, _, err := m.environ(); err != nil {
		f.missing("host.locale", err.Error())
		return
	}
	// None is set: programs then use this one.
	f.observed("host.locale", "C", "")
}

func (m *Machine) zone(root string) string {
	if to, err := fs.ReadLink(m.Root, root+"etc/localtime"); err == nil {
		if _, zone, ok := strings.Cut(to, "zoneinfo/"); ok {
			return zone
		}
	}
	if zone, err := m.line(root + "etc/timezone"); err == nil && zone != "" {
		return zone
	}
	if !m.exists(root + "etc/localtime") {
		return "UTC" // tzset(3): without a file it is that
	}
	return ""
}

// Clouds are whose instance metadata services [InstanceMetadata] can ask.
var Clouds = []string{"aws", "azure", "gcp"}

// InstanceMetadata returns a function for [Machine].Metadata that asks the
// metadata service of a cloud, at its fixed address on the machine's own link.
func InstanceMetadata(client *http.Client, cloud string) (func(ctx context.Context) (region, zone string, err error), error) {
	if client == nil {
		// Never through a proxy: the address means this machine.
		client = &http.Client{Transport: &http.Transport{Proxy: nil}, Timeout: 5 * time.Second}
	}
	ask := func(ctx context.Context, method, url string, header http.Header) (string, error) {
		req, err := http.NewRequestWithContext(ctx, method, url, nil)
		if err != nil {
			return "", err
		}
		req.Header = header
		resp, err := client.Do(req)
		if err != nil {
			return "", fmt.Errorf("instance metadata of %s: %w", cloud, err)
		}
		defer resp.Body.Close()
		raw, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
		if err == nil && resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s", resp.Status)
		}
		if err != nil {
			return "", fmt.Errorf("instance metadata of %s: %w", cloud, err)
		}
		return strings.TrimSpace(string(raw)), nil
	}
	switch cloud {
	case "aws":
		// IMDSv2: a token first.
		return func(ctx context.Context) (string, string, error) {
			token, err := ask(ctx, "PUT", "http://169.254.169.254/latest/api/token", http.Header{"X-Aws-Ec2-Metadata-Token-Ttl-Seconds": {"60"}})
			if err != nil {
				return "", "", err
			}
			h := http.Header{"X-Aws-Ec2-Metadata-Token": {token}}
			region, err := ask(ctx, "GET", "http://169.254.169.254/latest/meta-data/placement/region", h)
			if err != nil {
				return "", "", err
			}
			zone, err := ask(ctx, "GET", "http://169.254.169.254/latest/meta-data/placement/availability-zone", h)
			return region, zone, err
		}, nil
	case "gcp":
		// "projects/NUMBER/zones/europe-west4-a"
		return func(ctx context.Context) (string, string, error) {
			v, err := ask(ctx, "GET", "http://169.254.169.254/computeMetadata/v1/instance/zone", http.Header{"Metadata-Flavor": {"Google"}})
			if err != nil {
				return "", "", err
			}
			zone := v[strings.LastIndex(v, "/")+1:]
			i := strings.LastIndex(zone, "-")
			if i < 0 {
				return "", "", fmt.Errorf("instance metadata of gcp: %.80q is no zone", v)
			}
			return zone[:i], zone, nil
		}, nil
	case "azure":
		return func(ctx context.Context) (string, string, error) {
			raw, err := ask(ctx, "GET", "http://169.254.169.254/metadata/instance/compute?api-version=2021-02-01&format=json", http.Header{"Metadata": {"true"}})
			if err != nil {
				return "", "", err
			}
			var compute struct{ Location, Zone string }
			if err := json.Unmarshal([]byte(raw), &compute); err != nil {
				return "", "", fmt.Errorf("instance metadata of azure: %w", err)
			}
			return compute.Location, compute.Zone, nil
		}, nil
	}
	return nil, fmt.Errorf("no instance metadata service of %q is known: use one of %s", cloud, strings.Join(Clouds, ", "))
}
