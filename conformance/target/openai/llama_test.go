package openai

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/assay-dev/assay/conformance/compare"
	"github.com/assay-dev/assay/conformance/target"
	"github.com/assay-dev/assay/verify/attest"
)

const examples = "../../../examples/"

// llama starts the example's llama.cpp behind OpenAI's interface.
func llama(t *testing.T, model string, flags ...string) string {
	t.Helper()
	portFile := filepath.Join(t.TempDir(), "port")
	cmd := exec.Command("node", append([]string{examples + "environments/llama/server.mjs", "--model", model, "--name", "assistant", "--version", "assistant-1.0.0", "--port-file", portFile}, flags...)...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	for range 600 {
		if raw, err := os.ReadFile(portFile); err == nil {
			return "http://" + strings.TrimSpace(string(raw)) + "/v1"
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("llama.cpp did not come up in 30 s")
	return ""
}

// needed skips a test that lacks what 'make deps' installs, and with CI set
// fails it.
func needed(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// For package openai_test, which has whole suites over it.
var (
	Llama   = llama
	Rounded = rounded
)

// needLlama skips a test where llama.cpp cannot run.
func needLlama(t *testing.T) {
	t.Helper()
	version, err := exec.Command("node", "--version").Output()
	var major int
	fmt.Sscanf(string(version), "v%d", &major)
	if err != nil || major < 20 {
		needed(t, fmt.Sprintf("llama.cpp wants Node 20: %q, %v", version, err))
	}
	if _, err := os.Stat(examples + "environments/llama/node_modules/@node-llama-cpp/linux-x64"); err != nil {
		needed(t, fmt.Sprintf("llama.cpp is not installed: run 'make deps': %v", err))
	}
}

// rounded returns the example's model as it was released, in f16, and rounded to
// q4_0. It skips a test where llama.cpp cannot run.
func rounded(t *testing.T) (f16, q4 string) {
	t.Helper()
	needLlama(t)
	f16 = examples + "models/assistant/assistant-f16.gguf"
	q4 = filepath.Join(t.TempDir(), "q4_0.gguf")
	if out, err := exec.Command("node", examples+"environments/llama/quantize.mjs", "q4_0", f16, q4).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return f16, q4
}

// The real thing: llama.cpp, over a model of our own in GGUF files of three
// kinds.
func TestLlama(t *testing.T) {
	f16, q4 := rounded(t)
	reference := dialLlama(t, NameChat, llama(t, f16))
	same := dialLlama(t, NameChat, llama(t, f16))
	coarse := dialLlama(t, NameChat, llama(t, q4))

	d, err := reference.Describe(t.Context())
	if err != nil || !strings.HasPrefix(d.ServerVersion, "llama.cpp ") || !strings.HasPrefix(d.Parameters["model_path"], "sha256:") || d.Parameters["context"] != "192" || !strings.HasPrefix(d.Parameters["chat_template"], "sha256:") {
		t.Errorf("%+v, %v", d, err)
	}
	cases := assistantCases(t)
	for _, c := range reference.Probe(t.Context(), cases[0]) {
		if !c.Passed {
			t.Errorf("%+v", c)
		}
		t.Log(c)
	}
	tools, differ, largest := 0, 0, 0.0
	for _, q := range cases[:30] {
		want := answer(t, reference, q)
		if got := answer(t, same, q); fmt.Sprint(got.Choices) != fmt.Sprint(want.Choices) {
			t.Errorf("%s: the same file answers %+v and %+v", q.ID, want.Choices, got.Choices)
		}
		got := answer(t, coarse, q)
		tools += len(want.Choices[0].ToolCalls)
		a, b := want.Choices[0], got.Choices[0]
		if a.Text != b.Text || fmt.Sprint(a.ToolCalls) != fmt.Sprint(b.ToolCalls) {
			differ++
			continue
		}
		for i := range a.Tokens {
			largest = math.Max(largest, math.Abs(a.Tokens[i].Logprob-b.Tokens[i].Logprob))
		}
	}
	t.Logf("q4_0: %d of 30 answers differ, and log probabilities of the others by up to %.3g", differ, largest)
	if tools == 0 {
		t.Error("no tool was called")
	}
	if largest < 1e-3 {
		t.Errorf("q4_0 cannot be told from f16: log probabilities differ by %g", largest)
	}

	// Streamed, and as a completion of the text that the template makes.
	q := cases[1]
	q.Request = json.RawMessage(strings.Replace(string(q.Request), "{", `{"stream":true,`, 1))
	streamed, whole := answer(t, reference, q), answer(t, reference, cases[1])
	if streamed.Choices[0].Text != whole.Choices[0].Text || streamed.Timing.Pieces != len(whole.Choices[0].Tokens) || streamed.Timing.First <= 0 {
		t.Errorf("%+v\n%+v", streamed, whole)
	}
	completions := dialLlama(t, NameCompletions, reference.base)
	completed := answer(t, completions, target.Question{ID: "1", Model: "assistant", Version: "assistant-1.0.0", Request: json.RawMessage(`{"prompt":"<|user|>Spell bank.<|end|><|assistant|>","logprobs":2}`)})
	if c := completed.Choices[0]; c.Text != "b-a-n-k." || len(c.Tokens) != 8 || len(c.Tokens[0].Top) != 2 {
		t.Errorf("%+v", c)
	}

	// Embeddings: the same twice, in either encoding, and others when rounded.
	vector := func(url, encoding string) compare.Tensor {
		tg, err := New(attest.Target{Protocol: NameEmbeddings, URL: url, Model: "assistant", Version: "assistant-1.0.0"})
		if err != nil {
			t.Fatal(err)
		}
		q := target.Question{ID: "1", Model: "assistant", Version: "assistant-1.0.0", Request: json.RawMessage(`{"input":"Spell bank.","encoding_format":"` + encoding + `"}`)}
		for _, c := range tg.Probe(t.Context(), q) {
			if !c.Passed {
				t.Errorf("embeddings: %+v", c)
			}
		}
		return answer(t, tg, q).Outputs[0]
	}
	float, packed, other := vector(reference.base, "float"), vector(reference.base, "base64"), vector(coarse.base, "float")
	if d := compare.Tensors(float, packed, compare.Tolerance{}); d.Fault != "" || d.BitsDiffer != 0 || d.Elements != 128 {
		t.Errorf("the two encodings of an embedding: %+v", d)
	}
	if d := compare.Tensors(float, other, compare.Tolerance{}); d.Fault != "" || d.Cosine() > 1-1e-4 {
		t.Errorf("q4_0 cannot be told from f16 by an embedding: %+v, cosine %g", d, d.Cosine())
	}

	// A server that cuts questions short is found.
	for _, c := range dialLlama(t, NameChat, llama(t, f16, "--cut")).Probe(t.Context(), cases[0]) {
		if c.Passed != (c.Name != "does not cut long questions") {
			t.Errorf("%+v", c)
		}
	}
}

func dialLlama(t *testing.T, name, url string) *Target {
	t.Helper()
	tg, err := New(attest.Target{Protocol: name, URL: url, Model: "assistant", Version: "assistant-1.0.0", Options: `{"dialect":"llama.cpp","defaults":{"max_tokens":100}}`})
	if err != nil {
		t.Fatal(err)
	}
	return tg
}

func answer(t *testing.T, tg *Target, q target.Question) *target.Answer {
	t.Helper()
	raw, err := tg.Encode(q)
	if err != nil {
		t.Fatal(err)
	}
	x := tg.Send(t.Context(), raw)
	if x.Failure != nil {
		t.Fatal(x.Failure)
	}
	a, err := tg.Decode(q, x.Response)
	if err != nil {
		t.Fatalf("%v: %q", err, x.Body)
	}
	return a
}

func assistantCases(t *testing.T) (list []target.Question) {
	f, err := os.Open(examples + "models/assistant/cases.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var c struct {
			ID      string          `json:"id"`
			Request json.RawMessage `json:"request"`
		}
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			t.Fatal(err)
		}
		request := strings.Replace(string(c.Request), "{", `{"logprobs":true,"top_logprobs":2,`, 1)
		list = append(list, target.Question{ID: c.ID, Model: "assistant", Version: "assistant-1.0.0", Request: json.RawMessage(request)})
	}
	return list
}
