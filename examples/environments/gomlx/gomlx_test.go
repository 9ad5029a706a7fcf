package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const models = "../../models/"

type testCase struct {
	ID     string `json:"id"`
	Label  string `json:"label"`
	Inputs map[string]struct {
		Datatype string          `json:"datatype"`
		Shape    []int64         `json:"shape"`
		Data     json.RawMessage `json:"data"`
	} `json:"inputs"`
}

func cases(t testing.TB, name string) (list []testCase) {
	f, err := os.Open(models + name + "/cases.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var c testCase
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			t.Fatal(err)
		}
		list = append(list, c)
	}
	return list
}

func load(t testing.TB, dir string, int8 bool) *model {
	t.Helper()
	b, err := newBackend(1)
	if err != nil {
		t.Fatal(err)
	}
	m, err := loadModel(models+dir, b, int8)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func serve(t testing.TB, o options) string {
	o.name, o.version = "m", "1"
	s := httptest.NewServer(&server{options: o})
	t.Cleanup(s.Close)
	return s.URL + "/v2/models/m"
}

type reply struct {
	ID      string `json:"id"`
	Error   string `json:"error"`
	Outputs []struct {
		Name     string    `json:"name"`
		Datatype string    `json:"datatype"`
		Shape    []int64   `json:"shape"`
		Data     []float32 `json:"data"`
	} `json:"outputs"`
}

func infer(t testing.TB, base string, c testCase) (status int, r reply, raw []byte) {
	t.Helper()
	q := map[string]any{"id": c.ID, "inputs": []any{}}
	for name, in := range c.Inputs {
		q["inputs"] = append(q["inputs"].([]any), map[string]any{"name": name, "datatype": in.Datatype, "shape": in.Shape, "data": in.Data})
	}
	body, err := json.Marshal(q)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Post(base+"/infer", "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, _ = io.ReadAll(resp.Body)
	json.Unmarshal(raw, &r)
	return resp.StatusCode, r, raw
}

func label(row []float32) int {
	best := 0
	for i, v := range row {
		if v > row[best] {
			best = i
		}
	}
	return best
}

func TestAccuracy(t *testing.T) {
	for name, m := range map[string]struct {
		version string
		floor   float64
	}{"digits": {"1.1.0", 0.97}, "credit": {"1.4.0", 0.74}} {
		model := load(t, name+"/"+m.version, false)
		base := serve(t, options{model: model})
		right, all := 0, cases(t, name)
		for _, c := range all {
			status, r, raw := infer(t, base, c)
			if status != 200 || r.ID != c.ID || len(r.Outputs) != 1 {
				t.Fatalf("%s: %d %s", c.ID, status, raw)
			}
			if model.pre.Labels[label(r.Outputs[0].Data)] == c.Label {
				right++
			}
		}
		if got := float64(right) / float64(len(all)); got < m.floor {
			t.Errorf("%s: accuracy %v, want %v", name, got, m.floor)
		}
	}
}

func TestSwitches(t *testing.T) {
	some := cases(t, "credit")[:30]
	answers := func(o options) (out []float32) {
		base := serve(t, o)
		for _, c := range some {
			status, r, raw := infer(t, base, c)
			if status != 200 {
				t.Fatalf("%d %s", status, raw)
			}
			out = append(out, r.Outputs[0].Data...)
		}
		return out
	}
	good := load(t, "credit/1.4.0", false)
	want := answers(options{model: good})
	if !slices.Equal(answers(options{model: good}), want) {
		t.Error("the same model answers differently the second time")
	}
	for name, o := range map[string]options{
		"int8":             {model: load(t, "credit/1.4.0", true)},
		"no normalisation": {model: good, raw: true},
		"permuted classes": {model: good, permute: true},
		"older checkpoint": {model: load(t, "credit/1.3.0", false)},
		"canary":           {model: good, canary: load(t, "credit/1.3.0", false), canaryShare: 0.2},
	} {
		got := answers(o)
		differ := 0
		for i := 0; i < len(got); i += 2 {
			if got[i] != want[i] {
				differ++
			}
		}
		if differ == 0 || name == "canary" && differ != 6 {
			t.Errorf("%s: %d of 30 answers differ", name, differ)
		}
	}
}

func TestFailures(t *testing.T) {
	c := cases(t, "credit")[0]
	m := load(t, "credit/1.4.0", false)
	for fail, check := range map[string]func(status int, r reply, raw []byte) bool{
		"nan":          func(_ int, _ reply, raw []byte) bool { return bytes.Contains(raw, []byte("[NaN,")) },
		"shape":        func(_ int, r reply, _ []byte) bool { return len(r.Outputs[0].Shape) == 1 },
		"dtype":        func(_ int, r reply, _ []byte) bool { return r.Outputs[0].Datatype == "FP64" },
		"drop-output":  func(_ int, r reply, _ []byte) bool { return len(r.Outputs) == 0 },
		"error-in-200": func(status int, r reply, _ []byte) bool { return status == 200 && r.Error != "" },
		"http500":      func(status int, r reply, _ []byte) bool { return status == 500 && r.Error != "" },
	} {
		base := serve(t, options{model: m, fail: fail, failEvery: 2})
		if status, r, raw := infer(t, base, c); status != 200 || len(r.Outputs) != 1 {
			t.Errorf("%s: the first request: %d %s", fail, status, raw)
		}
		if status, r, raw := infer(t, base, c); !check(status, r, raw) {
			t.Errorf("%s: the second request: %d %s", fail, status, raw)
		}
	}
	start := time.Now()
	infer(t, serve(t, options{model: m, fail: "slow:100ms", failEvery: 1}), c)
	if time.Since(start) < 100*time.Millisecond {
		t.Error("slow is not slow")
	}
}

func TestBadRequests(t *testing.T) {
	base := serve(t, options{model: load(t, "credit/1.4.0", false)})
	for _, body := range []string{
		`{`, `{}`, `{"inputs":[{"name":"x","datatype":"FP32","shape":[1,8],"data":[1,2,3,4,5,6,7,8]}]}`,
		`{"inputs":[{"name":"features","datatype":"FP64","shape":[1,8],"data":[1,2,3,4,5,6,7,8]}]}`,
		`{"inputs":[{"name":"features","datatype":"FP32","shape":[1,7],"data":[1,2,3,4,5,6,7]}]}`,
		`{"inputs":[{"name":"features","datatype":"FP32","shape":[1,8],"data":[1,2]}]}`,
		`{"inputs":[{"name":"features","datatype":"FP32","shape":[1,8],"data":"12345678"}]}`,
		`{"inputs":[{"name":"features","datatype":"FP32","shape":[1,8],"data":[1,2,3,4,5,6,7,1e99]}]}`,
	} {
		resp, err := http.Post(base+"/infer", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		raw, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 400 || !strings.Contains(string(raw), `"error"`) {
			t.Errorf("%s: %d %s", body, resp.StatusCode, raw)
		}
	}
}

// The runtimes are different ones: the low bits of their answers differ, and
// every decision is the same. So comparing them is a real comparison.
func TestRuntimesDifferInTheLowBits(t *testing.T) {
	for dir, pkg := range map[string]string{"ort-native": "onnxruntime-node", "ort-web": "onnxruntime-web"} {
		t.Run(dir, func(t *testing.T) { compareRuntimes(t, dir, pkg) })
	}
}

func compareRuntimes(t *testing.T, dir, pkg string) {
	node, err := exec.LookPath("node")
	if err == nil {
		_, err = os.Stat("../" + dir + "/node_modules/" + pkg)
	}
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("the runtime %s is not installed: run 'make deps': %v", dir, err)
		}
		t.Skipf("the runtime %s is not installed: run 'make deps': %v", dir, err)
	}
	for name, version := range map[string]string{"digits": "1.1.0", "credit": "1.4.0"} {
		portFile := filepath.Join(t.TempDir(), "port")
		cmd := exec.Command(node, "../"+dir+"/server.mjs", "--model", models+name+"/"+version, "--name", "m", "--port-file", portFile)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() {
			cmd.Process.Kill()
			cmd.Wait()
		}()
		other := "http://" + waitFor(t, portFile) + "/v2/models/m"
		base := serve(t, options{model: load(t, name+"/"+version, false)})
		numbers, differ, largest := 0, 0, 0.0
		for _, c := range cases(t, name)[:200] {
			_, a, _ := infer(t, base, c)
			_, b, raw := infer(t, other, c)
			if len(b.Outputs) != 1 || len(a.Outputs[0].Data) != len(b.Outputs[0].Data) {
				t.Fatalf("%s", raw)
			}
			if label(a.Outputs[0].Data) != label(b.Outputs[0].Data) {
				t.Errorf("%s: the runtimes decide differently", c.ID)
			}
			for i, v := range a.Outputs[0].Data {
				numbers++
				if w := b.Outputs[0].Data[i]; v != w {
					differ++
					largest = math.Max(largest, math.Abs(float64(v-w)))
				}
			}
		}
		t.Logf("%s: %d of %d numbers differ, by at most %.2g", name, differ, numbers, largest)
		if differ == 0 || largest > 1e-5 {
			t.Errorf("%s: %d of %d numbers differ, by at most %v", name, differ, numbers, largest)
		}
	}
}

func waitFor(t *testing.T, file string) string {
	t.Helper()
	for range 200 {
		if raw, err := os.ReadFile(file); err == nil {
			return strings.TrimSpace(string(raw))
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal(fmt.Sprintf("%s was not written", file))
	return ""
}
