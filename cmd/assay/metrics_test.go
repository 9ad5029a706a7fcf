package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
)

// Metrics are named by convention, and no label has the name of anything that
// there can be many of.
func TestMetrics(t *testing.T) {
	o := newOffice(t)
	ask(o.http, "GET", "/v2/"+team+"/blobs/"+string(digest.FromString("nothing")), nil, "Authorization", o.root)
	ask(o.http, "BREW", "/v2/"+team+"/tags/list", nil, "Authorization", o.root)
	ask(o.http, "GET", "/v2/some/where/else", nil, "Authorization", o.root)
	ask(o.http, "GET", "/api/v1/repositories", nil, "Authorization", o.root)
	r := o.must(http.StatusOK, "GET", "/metrics", nil)
	problems, err := promlint.New(bytes.NewReader(r.body)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	for _, want := range []string{
		`assay_oci_requests_total{code="201",method="PUT",route="/v2/<name>/manifests/<reference>"} `,
		`assay_oci_requests_total{code="405",method="other",route="/v2/<name>/tags/list"} 1`,
		`assay_oci_requests_total{code="404",method="GET",route="none"} 1`,
		`assay_ready 1`,
		`assay_disk_bytes{state="free"} `,
		`assay_log_leaves `,
	} {
		if !bytes.Contains(r.body, []byte(want)) {
			t.Errorf("there is no %s", want)
		}
	}
	for _, never := range []string{"sha256", team, "operator-of-all"} {
		if i := bytes.Index(r.body, []byte(never)); i >= 0 {
			t.Errorf("%q is in the metrics: …%s…", never, r.body[max(0, i-80):i+len(never)])
		}
	}
}

// Each request that changes something is one line of JSON, with the id that
// the client was told, or that it sent.
func TestLogs(t *testing.T) {
	p := startProcess(t, filepath.Join(t.TempDir(), "data"), nil, "--log-format", "json").ready()
	d := digest.FromString("hello")
	push := func(headers ...string) string {
		r := ask(p.HTTP, "POST", "/v2/a/blobs/uploads/?digest="+string(d), []byte("hello"), headers...)
		if r.status != http.StatusCreated {
			t.Fatal(r)
		}
		return r.header.Get("X-Request-Id")
	}
	ours, theirs := push(), push("X-Request-Id", "ticket-4711")
	forged := push("X-Request-Id", `x" level=ERROR msg="all is lost`)
	wrong := ask(p.HTTP, "POST", "/v2/a/blobs/uploads/?digest="+string(d), []byte("hellO")).header.Get("X-Request-Id")
	if theirs != "ticket-4711" || ours == "" || strings.Contains(forged, " ") {
		t.Errorf("request ids %q, %q and %q", ours, theirs, forged)
	}
	p.stop()
	seen := map[string]map[string]any{}
	for lines := bufio.NewScanner(p.log); lines.Scan(); {
		var line map[string]any
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			t.Fatalf("%q: %v", lines.Text(), err)
		}
		if id, ok := line["request"].(string); ok {
			seen[id] = line
		}
	}
	for _, id := range []string{ours, theirs, forged} {
		if l := seen[id]; l == nil || l["status"] != 201.0 || l["repository"] != "a" || l["received"] != 5.0 {
			t.Errorf("request %s: %v", id, l)
		}
	}
	if l := seen[wrong]; l == nil || l["status"] != 400.0 || !strings.Contains(l["error"].(string), "digest") {
		t.Errorf("a refused request: %v", l)
	}
}
