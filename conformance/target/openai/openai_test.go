package openai

import (
	"encoding/json"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/assay-dev/assay/conformance/target"
	"github.com/assay-dev/assay/conformance/target/targettest"
	"github.com/assay-dev/assay/verify/attest"
)

func open(t testing.TB, name, options string, s *targettest.OpenAI) *Target {
	t.Helper()
	tg, err := New(attest.Target{Protocol: name, URL: s.URL + "/v1", Model: "parrot", Version: "parrot-2026-03-01", Options: options})
	if err != nil {
		t.Fatal(err)
	}
	return tg
}

func ask(t testing.TB, tg target.Target, request string) (*target.Answer, target.Exchange, error) {
	t.Helper()
	q := question(request)
	raw, err := tg.Encode(q)
	if err != nil {
		t.Fatal(err)
	}
	x := tg.Send(t.Context(), raw)
	if x.Failure != nil {
		return nil, x, x.Failure
	}
	a, err := tg.Decode(q, x.Response)
	return a, x, err
}

func question(request string) target.Question {
	return target.Question{ID: "case-1", Model: "parrot", Version: "parrot-2026-03-01", Request: json.RawMessage(request)}
}

// whole is what every answer with choices may do wrong.
func whole() map[string]string {
	return map[string]string{
		"http-500": "http", "http-429": "http", "hang": "timeout", "close": "connection", "empty": "truncated", "not-json": "malformed", "truncated": "truncated",
		"error-in-200": "error-in-200", "wrong-model": "wrong-version", "no-model": "wrong-model", "cached": "cached", "duplicate-key": "malformed", "usage-off": "malformed",
		"nan": "not-finite", "null-logprob": "not-finite", "no-logprobs": "ignored", "no-top-logprobs": "ignored", "silent-canary": targettest.Answer,
		"drop-choice": "ignored", "extra-choice": "extra-output", "no-finish": "truncated", "ignore-max-tokens": "ignored", "ignore-stop": "ignored",
	}
}

func streams() map[string]string {
	m := whole()
	// In the midst of events what is no event is seen before what it says.
	m["error-in-200"], m["not-json"] = "truncated", "truncated"
	for k, v := range map[string]string{
		"error-in-stream": "error-in-200", "no-done": "truncated", "canary-in-stream": "wrong-version", "other-id-in-stream": "wrong-id", "no-usage": "ignored",
		"after-done": "malformed", "ignore-stream": "ignored", "lost-token": targettest.Answer,
	} {
		m[k] = v
	}
	return m
}

// subject is a protocol with one question to it.
func subject(name, request string, faults map[string]string, check func(testing.TB, *target.Answer)) targettest.Subject {
	s := targettest.Subject{
		Open: func(t testing.TB, fault func(int) string) (target.Target, targettest.Environment) {
			s := targettest.NewOpenAI(t)
			s.SetMisbehave(fault)
			return open(t, name, "", s), s
		},
		Question: question(request), Check: check, Faults: faults,
		Excused: map[string]string{
			"wrong-id":      "an answer does not say to which question it is",
			"wrong-version": "the fault wrong-model is one of the version here",
		},
		Bad: map[string]target.Question{
			"tensors":          {ID: "1", Model: "parrot", Inputs: question("{}").Inputs},
			"a list":           question(`[]`),
			"nothing":          question(`{}`),
			"another model":    question(`{"model":"x","messages":[],"prompt":"","input":""}`),
			"names used twice": question(`{"messages":[],"messages":[],"prompt":"","prompt":"","input":"","input":""}`),
		},
	}
	return s
}

func TestChat(t *testing.T) {
	const request = `{"messages":[{"role":"user","content":"one two three four"}],"logprobs":true,"top_logprobs":2,"n":2,"max_tokens":4,"stop":[" one"],%s}`
	check := func(t testing.TB, a *target.Answer) {
		t.Helper()
		if len(a.Choices) != 2 {
			t.Fatalf("%d choices", len(a.Choices))
		}
		for _, c := range a.Choices {
			if c.Text != " four three two" || c.FinishReason != "stop" || len(c.Tokens) != 3 {
				t.Fatalf("%+v", c)
			}
			k := c.Tokens[1]
			if k.Text != " three" || string(k.Bytes) != " three" || k.Logprob != -0.015625 || len(k.Top) != 2 || k.Top[1].Text != " three1" || k.Top[1].Logprob != -1.515625 {
				t.Errorf("%+v", k)
			}
		}
		if u := a.Usage; u == nil || u.Prompt != 5 || u.Completion != 6 {
			t.Errorf("usage %+v", u)
		}
		if a.Model != "parrot" || a.Version != "parrot-2026-03-01" || a.Declared["system_fingerprint"] != "fp_fake" {
			t.Errorf("%+v", a)
		}
	}
	t.Run("whole", func(t *testing.T) {
		targettest.Test(t, subject(NameChat, strings.Replace(request, "%s", `"stream":false`, 1), whole(), check))
	})
	t.Run("streamed", func(t *testing.T) {
		targettest.Test(t, subject(NameChat, strings.Replace(request, "%s", `"stream":true`, 1), streams(), check))
	})
}

func TestCompletions(t *testing.T) {
	const request = `{"prompt":"one two three four","logprobs":2,"max_tokens":4,"stop":"one",%s}`
	check := func(t testing.TB, a *target.Answer) {
		t.Helper()
		if len(a.Choices) != 1 {
			t.Fatalf("%d choices", len(a.Choices))
		}
		c := a.Choices[0]
		if c.Text != " four three two" || c.FinishReason != "stop" || len(c.Tokens) != 3 || c.Tokens[1].Text != " three" || len(c.Tokens[1].Top) != 2 || c.Tokens[1].Top[0].Logprob != -0.015625 {
			t.Errorf("%+v", c)
		}
	}
	t.Run("whole", func(t *testing.T) {
		targettest.Test(t, subject(NameCompletions, strings.Replace(request, "%s", `"stream":false`, 1), whole(), check))
	})
	t.Run("streamed", func(t *testing.T) {
		targettest.Test(t, subject(NameCompletions, strings.Replace(request, "%s", `"stream":true`, 1), streams(), check))
	})
}

func TestEmbeddings(t *testing.T) {
	for _, format := range []string{"float", "base64"} {
		t.Run(format, func(t *testing.T) {
			faults := map[string]string{
				"nan": "not-finite", "silent-canary": targettest.Answer, "drop-embedding": "missing-output", "twice": "extra-output", "ignore-dimensions": "ignored", "ignore-format": "ignored",
			}
			if format == "base64" {
				faults["nan"] = "ignored" // numbers in the place of base64
			}
			for _, f := range targettest.OpenAIFaults {
				if f != "trickle" {
					faults[f] = whole()[f]
				}
			}
			s := subject(NameEmbeddings, `{"input":["ab","b c"],"dimensions":4,"encoding_format":"`+format+`"}`, faults, func(t testing.TB, a *target.Answer) {
				t.Helper()
				if len(a.Outputs) != 1 {
					t.Fatalf("%d outputs", len(a.Outputs))
				}
				// a is 97, b 98: remainders 1 and 2 of 4.
				half := float32(math.Sqrt(0.5))
				want := targettest.FP32("embedding", []int64{2, 4}, 0, half, half, 0)
				if e := a.Outputs[0]; e.Datatype != "FP32" || !slices.Equal(e.Shape, want.Shape) || string(e.Bits[:16]) != string(want.Bits) {
					t.Errorf("%+v, want %+v", e, want)
				}
				if a.Usage == nil || a.Usage.Prompt != 3 {
					t.Errorf("usage %+v", a.Usage)
				}
			})
			targettest.Test(t, s)
		})
	}
}

// Chunks that come a few bytes at a time say the same, and say when.
func TestTrickledChunks(t *testing.T) {
	s := targettest.NewOpenAI(t)
	s.SetMisbehave(func(int) string { return "trickle" })
	tg := open(t, NameChat, "", s)
	a, x, err := ask(t, tg, `{"messages":[{"role":"user","content":"a b c d e"}],"stream":true}`)
	if err != nil {
		t.Fatal(err)
	}
	if a.Choices[0].Text != " e d c b a" || a.Timing.Pieces != 5 {
		t.Errorf("%+v", a)
	}
	if len(x.Arrivals) < 20 {
		t.Errorf("%d arrivals for %d bytes that came 17 at a time", len(x.Arrivals), len(x.Body))
	}
	if a.Timing.First <= 0 || a.Timing.Last <= a.Timing.First || a.Timing.PerPiece() < time.Millisecond || a.Timing.Last > x.Received.Sub(x.Sent)+time.Millisecond {
		t.Errorf("%+v, PerPiece %v, in all %v", a.Timing, a.Timing.PerPiece(), x.Received.Sub(x.Sent))
	}
	// The first piece with content is not the first event, which is a role.
	if first := x.Arrivals[0].After; a.Timing.First <= first {
		t.Errorf("the first token is timed at %v, and the first byte at %v", a.Timing.First, first)
	}
}

func TestToolCalls(t *testing.T) {
	const tools = `"tools":[{"type":"function","function":{"name":"get_weather","parameters":{"type":"object","properties":{"city":{"type":"string"},"at":{"type":"string"}}}}}]`
	tg := open(t, NameChat, "", targettest.NewOpenAI(t))
	for _, stream := range []string{"false", "true"} {
		a, _, err := ask(t, tg, `{"messages":[{"role":"user","content":"the weather in Oslo"}],`+tools+`,"stream":`+stream+`}`)
		if err != nil {
			t.Fatal(err)
		}
		c := a.Choices[0]
		if c.FinishReason != "tool_calls" || len(c.ToolCalls) != 1 || c.ToolCalls[0] != (target.ToolCall{ID: "call_1", Name: "get_weather", Arguments: `{"city": "Oslo"}`}) {
			t.Errorf("stream %s: %+v", stream, c)
		}
	}
	for choice, text := range map[string]string{`"required"`: "hello there", `{"type":"function","function":{"name":"get_weather"}}`: "hello there"} {
		if a, _, err := ask(t, tg, `{"messages":[{"role":"user","content":"`+text+`"}],`+tools+`,"tool_choice":`+choice+`}`); err == nil || !strings.HasPrefix(err.Error(), "ignored") {
			t.Errorf("tool_choice %s: %+v, %v", choice, a, err)
		}
	}
	if a, _, err := ask(t, tg, `{"messages":[{"role":"user","content":"the weather in Oslo"}],`+tools+`,"tool_choice":"none"}`); err != nil || len(a.Choices[0].ToolCalls) != 0 {
		t.Errorf("tool_choice none: %+v, %v", a, err)
	}
	if _, _, err := ask(t, tg, `{"messages":[{"role":"user","content":"hello"}],"response_format":{"type":"json_object"}}`); err == nil || !strings.HasPrefix(err.Error(), "ignored") {
		t.Errorf("a text for JSON: %v", err)
	}
	// The schema is shown to the model as it was written.
	raw, err := tg.Encode(question(`{"messages":[],` + tools + `}`))
	if err != nil || !strings.Contains(string(raw), `"properties":{"city":{"type":"string"},"at":{"type":"string"}}`) {
		t.Errorf("%s, %v", raw, err)
	}
}

// Whatever a server would choose a default for is sent.
func TestTrap5EverythingIsSent(t *testing.T) {
	s := targettest.NewOpenAI(t)
	for _, c := range []struct{ name, options, request, want string }{
		{NameChat, ``, `{"messages":[]}`,
			`{"frequency_penalty":0,"logprobs":false,"max_tokens":256,"messages":[],"model":"parrot","n":1,"presence_penalty":0,"response_format":{"type":"text"},"seed":1,"stop":null,"stream":false,"temperature":0,"top_p":1}`},
		{NameChat, `{"dialect":"vllm"}`, `{"messages":[],"temperature":0.7,"stream":true}`,
			`{"frequency_penalty":0,"ignore_eos":false,"length_penalty":1,"logprobs":false,"max_tokens":256,"messages":[],"min_p":0,"min_tokens":0,"model":"parrot","n":1,"presence_penalty":0,"repetition_penalty":1,"response_format":{"type":"text"},"seed":1,"skip_special_tokens":true,"stop":null,"stream":true,"stream_options":{"include_usage":true},"temperature":0.7,"top_k":-1,"top_p":1}`},
		{NameCompletions, `{"defaults":{"best_of":null,"seed":7}}`, `{"prompt":"x"}`,
			`{"echo":false,"frequency_penalty":0,"logprobs":null,"max_tokens":256,"model":"parrot","n":1,"presence_penalty":0,"prompt":"x","seed":7,"stop":null,"stream":false,"temperature":0,"top_p":1}`},
		{NameChat, ``, `{"messages":[],"max_completion_tokens":9}`,
			`{"frequency_penalty":0,"logprobs":false,"max_completion_tokens":9,"messages":[],"model":"parrot","n":1,"presence_penalty":0,"response_format":{"type":"text"},"seed":1,"stop":null,"stream":false,"temperature":0,"top_p":1}`},
		{NameEmbeddings, ``, `{"input":"x"}`, `{"encoding_format":"float","input":"x","model":"parrot"}`},
	} {
		got, err := open(t, c.name, c.options, s).Encode(question(c.request))
		if err != nil || string(got) != c.want {
			t.Errorf("%s %s:\n%s, %v, want\n%s", c.name, c.request, got, err, c.want)
		}
	}
}

// Trap 5: what a server would choose for itself is not left to it, but sent, on the
// wire; what an answer shows not to have been heeded is found; and so is what the
// server says it used instead. A temperature that nobody sees is found by asking
// again: see TestTrap5TemperatureOfItsOwn of package conformance.
func TestTrap5ServerDefaults(t *testing.T) {
	chat := []string{"temperature", "top_p", "n", "seed", "max_tokens", "presence_penalty", "frequency_penalty", "stop", "stream", "logprobs", "response_format"}
	completions := []string{"temperature", "top_p", "n", "seed", "max_tokens", "presence_penalty", "frequency_penalty", "stop", "stream", "logprobs", "echo", "best_of"}
	vllm := []string{"top_k", "min_p", "repetition_penalty", "length_penalty", "ignore_eos", "min_tokens", "skip_special_tokens"}
	llama := []string{"top_k", "min_p", "typical_p", "repeat_penalty", "dry_multiplier", "xtc_probability", "mirostat", "cache_prompt", "ignore_eos"}
	var wire atomic.Value
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		raw, _ := io.ReadAll(r.Body)
		wire.Store(raw)
		w.WriteHeader(http.StatusTeapot)
	}))
	defer s.Close()
	for _, c := range []struct {
		name, options, request string
		want                   []string
	}{
		{NameChat, "", `{"messages":[]}`, chat},
		{NameChat, "", `{"messages":[],"tools":[{"type":"function","function":{"name":"f"}}]}`, append([]string{"tool_choice", "parallel_tool_calls"}, chat...)},
		{NameChat, "", `{"messages":[],"stream":true}`, append([]string{"stream_options"}, chat...)},
		{NameChat, `{"dialect":"vllm"}`, `{"messages":[]}`, append(vllm, chat...)},
		{NameChat, `{"dialect":"llama.cpp"}`, `{"messages":[]}`, append(llama, chat...)},
		{NameCompletions, "", `{"prompt":"x"}`, completions},
		{NameCompletions, `{"dialect":"vllm"}`, `{"prompt":"x"}`, append(vllm, completions...)},
		{NameCompletions, `{"dialect":"llama.cpp"}`, `{"prompt":"x"}`, append(llama, completions...)},
		{NameEmbeddings, "", `{"input":"x"}`, []string{"encoding_format"}},
	} {
		tg, err := New(attest.Target{Protocol: c.name, URL: s.URL + "/v1", Model: "parrot", Options: c.options})
		if err != nil {
			t.Fatal(err)
		}
		raw, err := tg.Encode(question(c.request))
		if err != nil {
			t.Fatal(err)
		}
		tg.Send(t.Context(), raw)
		var sent map[string]json.RawMessage
		if err := json.Unmarshal(wire.Load().([]byte), &sent); err != nil {
			t.Fatal(err)
		}
		for _, name := range c.want {
			if _, ok := sent[name]; !ok {
				t.Errorf("%s %s: %s is left to the server", c.name, c.options, name)
			}
		}
	}

	const text = `"messages":[{"role":"user","content":"one two three four five six"}]`
	const tool = `,"tools":[{"type":"function","function":{"name":"weather","parameters":{"type":"object"}}}]`
	for fault, c := range map[string]struct{ name, request string }{
		"ignore-max-tokens": {NameChat, `{` + text + `,"max_tokens":3}`}, "ignore-stop": {NameChat, `{` + text + `,"stop":"three"}`},
		"ignore-stream": {NameChat, `{` + text + `,"stream":true}`}, "no-usage": {NameChat, `{` + text + `,"stream":true}`},
		"no-logprobs": {NameChat, `{` + text + `,"logprobs":true}`}, "no-top-logprobs": {NameChat, `{` + text + `,"logprobs":true,"top_logprobs":2}`},
		"drop-choice":       {NameChat, `{` + text + `,"n":2}`},
		"ignore-dimensions": {NameEmbeddings, `{"input":"one two","dimensions":4}`}, "ignore-format": {NameEmbeddings, `{"input":"one two","encoding_format":"base64"}`},
		// What no fault has to be made for: the fake calls no tool here, and speaks no JSON.
		"tool_choice":     {NameChat, `{` + text + tool + `,"tool_choice":"required"}`},
		"response_format": {NameChat, `{` + text + `,"response_format":{"type":"json_object"}}`},
	} {
		f := targettest.NewOpenAI(t)
		f.SetMisbehave(func(int) string { return fault })
		if _, _, err := ask(t, open(t, c.name, "", f), c.request); err == nil || !strings.HasPrefix(err.Error(), "ignored: ") {
			t.Errorf("%s: %v", fault, err)
		}
	}

	const applies = "applies the parameters that it is sent"
	for fault, want := range map[string]string{"": "not said", "settings": "passed", "other-settings": "temperature is 0, and it says that it used 0.8"} {
		f := targettest.NewOpenAI(t)
		f.SetMisbehave(func(int) string { return fault })
		checks := open(t, NameChat, "", f).Probe(t.Context(), question(`{`+text+`,"top_p":0.3}`))
		i := slices.IndexFunc(checks, func(c target.Check) bool { return c.Name == applies })
		got := "not said"
		if i >= 0 {
			got = checks[i].Detail
			if checks[i].Passed {
				got = "passed"
			}
		}
		if got != want {
			t.Errorf("%q: %s, want %s: %+v", fault, got, want, checks)
		}
	}
}

func TestProbe(t *testing.T) {
	const request = `{"messages":[{"role":"user","content":"one two three four five six"}]}`
	for fault, want := range map[string][2]bool{"": {true, true}, "cut": {false, true}, "lost-token": {true, false}, "no-usage": {true, false}} {
		s := targettest.NewOpenAI(t)
		s.SetMisbehave(func(int) string { return fault })
		s.Context = 100
		checks := open(t, NameChat, "", s).Probe(t.Context(), question(request))
		if len(checks) != 2 || checks[0].Passed != want[0] || checks[1].Passed != want[1] {
			t.Errorf("%q: %+v", fault, checks)
		}
		t.Log(fault, checks)
	}
	s := targettest.NewOpenAI(t)
	if checks := open(t, NameEmbeddings, "", s).Probe(t.Context(), question(`{"input":["one two three"]}`)); len(checks) != 1 || !checks[0].Passed {
		t.Errorf("%+v", checks)
	}
	if checks := open(t, NameCompletions, "", s).Probe(t.Context(), question(`{"prompt":"one two three"}`)); len(checks) != 2 || !checks[0].Passed || !checks[1].Passed {
		t.Errorf("%+v", checks)
	}
}

func TestTargets(t *testing.T) {
	for _, bad := range []attest.Target{
		{Protocol: "openai", URL: "http://h/v1", Model: "m"},
		{Protocol: NameChat, URL: "h", Model: "m"},
		{Protocol: NameChat, URL: "http://h/v1", Model: "m", Options: `{"dialect":"klingon"}`},
		{Protocol: NameChat, URL: "http://h/v1", Model: "m", Options: `{"tokenFrom":"ASSAY_TEST_NO_SUCH_VARIABLE"}`},
		{Protocol: NameChat, URL: "http://h/v1", Model: "m", Options: `{"apiKey":"secret"}`},
	} {
		if _, err := New(bad); err == nil {
			t.Errorf("%+v was accepted", bad)
		}
	}
	s := targettest.NewOpenAI(t)
	tg, err := New(attest.Target{Protocol: NameChat, URL: s.URL + "/v1", Model: "cockatoo"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tg.Describe(t.Context()); err == nil || !strings.Contains(err.Error(), "it lists parrot") {
		t.Errorf("a model that is not listed: %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte("data: {\"id\":\"1\",\"model\":\"parrot-2026-03-01\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"x\"},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":1,\"total_tokens\":2}}\n\ndata: [DONE]\n\n"), true)
	f.Add([]byte(`{"model":"parrot-2026-03-01","choices":[{"index":0,"message":{"content":"x"},"finish_reason":"stop"}]}`), false)
	f.Fuzz(func(t *testing.T, body []byte, stream bool) {
		r := target.Response{Status: 200, Body: body, Header: map[string]string{"Content-Type": "application/json"}}
		q := question(`{"messages":[]}`)
		if stream {
			r.Header["Content-Type"] = "text/event-stream"
			q = question(`{"messages":[],"stream":true}`)
		}
		p, err := NewProtocol(attest.Target{Protocol: NameChat})
		if err != nil {
			t.Fatal(err)
		}
		a, err := p.Decode(q, r)
		if (a == nil) == (err == nil) {
			t.Errorf("answer %v and error %v", a, err)
		}
		if a != nil && (len(a.Choices) != 1 || a.Choices[0].FinishReason == "" || a.Version != q.Version) {
			t.Errorf("%+v", a)
		}
	})
}
