package exec

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/assay-dev/assay/conformance/compare"
	"github.com/assay-dev/assay/conformance/target"
	"github.com/assay-dev/assay/conformance/target/targettest"
	"github.com/assay-dev/assay/verify/attest"
)

// TestMain is also the program that the tests start: "jsonl LEDGER FAULT…"
// answers questions, the n-th of them with the n-th fault. It notes each in
// the ledger, a byte a question.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "jsonl" {
		answerLines(os.Args[2], os.Args[3:])
		return
	}
	// A program built with the race detector takes a second to end.
	os.Setenv("GORACE", "atexit_sleep_ms=0")
	os.Exit(m.Run())
}

func answerLines(ledger string, faults []string) {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var q struct {
			Describe string          `json:"describe"`
			ID       string          `json:"id"`
			Model    string          `json:"model_name"`
			Request  json.RawMessage `json:"request"`
			Inputs   []struct {
				Name  string          `json:"name"`
				Shape json.RawMessage `json:"shape"`
				Data  json.RawMessage `json:"data"`
			} `json:"inputs"`
		}
		if err := json.Unmarshal(lines.Bytes(), &q); err != nil {
			fmt.Printf("{\"error\":%q}\n", err)
			continue
		}
		info, err := os.Stat(ledger)
		if err != nil {
			fmt.Fprintln(os.Stderr, "there is no ledger")
			os.Exit(1)
		}
		if q.Describe != "" {
			fmt.Printf(`{"name":%q,"versions":["1"],"platform":"test","inputs":[{"name":"features","datatype":"FP32","shape":[-1,2]}],"outputs":[{"name":"probabilities","datatype":"FP32","shape":[-1,2]}]}`+"\n", q.Describe)
			continue
		}
		f, err := os.OpenFile(ledger, os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			panic(err)
		}
		f.Write([]byte{'.'})
		f.Close()
		fault := ""
		if n := int(info.Size()); n < len(faults) {
			fault = faults[n]
		}
		content := fmt.Sprintf(`"value":%s`, q.Request)
		if q.Request == nil {
			data := string(q.Inputs[0].Data)
			if fault == "nan" {
				data = "[NaN,0.5]"
			}
			content = fmt.Sprintf(`"outputs":[{"name":"probabilities","shape":%s,"datatype":"FP32","data":%s}]`, q.Inputs[0].Shape, data)
		}
		id, model, version := q.ID, q.Model, "1"
		switch fault {
		case "wrong-id":
			id = "another"
		case "wrong-model":
			model = "n"
		case "wrong-version":
			version = "2"
		case "no-content":
			content = `"more":1`
		}
		answer := fmt.Sprintf(`{"id":%q,"model_name":%q,"model_version":%q,%s}`, id, model, version, content)
		switch fault {
		case "error-in-200":
			answer = fmt.Sprintf(`{"id":%q,"error":"out of memory"}`, q.ID)
		case "not-json":
			answer = "Traceback (most recent call last):"
		case "empty":
			answer = ""
		case "hang":
			time.Sleep(time.Minute)
		case "close":
			fmt.Fprintln(os.Stderr, "segmentation fault")
			os.Exit(139)
		case "truncated":
			fmt.Print(answer[:len(answer)/2])
			os.Exit(0)
		}
		fmt.Println(answer)
	}
}

type environment struct{ ledger string }

func (e environment) Requests() int {
	info, err := os.Stat(e.ledger)
	if err != nil {
		return 0
	}
	return int(info.Size())
}
func (e environment) Close() { os.Remove(e.ledger) } // the program ends at its next question

func open(t testing.TB, fault func(int) string) (target.Target, targettest.Environment) {
	ledger := filepath.Join(t.TempDir(), "ledger")
	if err := os.WriteFile(ledger, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	args := []string{"jsonl", ledger}
	for n := 1; n <= 20; n++ {
		args = append(args, fault(n))
	}
	options, err := attest.Marshal(Options{Args: args})
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	os.Setenv(Allow, self)
	tg, err := New(attest.Target{Protocol: Name, URL: "exec://" + self, Model: "m", Version: "1", Options: string(options)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tg.Close() })
	return tg, environment{ledger}
}

func faults() map[string]string {
	return map[string]string{
		"hang": "timeout", "close": "connection", "empty": "truncated", "not-json": "malformed", "truncated": "truncated", "error-in-200": "error-in-200",
		"wrong-id": "wrong-id", "wrong-model": "wrong-model", "wrong-version": "wrong-version", "no-content": "missing-output",
	}
}

var excused = map[string]string{"http-500": "there is no HTTP", "http-429": "there is no HTTP", "cached": "nobody stands between"}

func TestTensors(t *testing.T) {
	f := faults()
	f["nan"] = "not-finite"
	in := targettest.FP32("features", []int64{1, 2}, 0.1, 0.5)
	targettest.Test(t, targettest.Subject{
		Open: open, Faults: f, Excused: excused,
		Question: target.Question{ID: "case-1", Model: "m", Version: "1", Inputs: []compare.Tensor{in}, Outputs: []string{"probabilities"}},
		Check: func(t testing.TB, a *target.Answer) {
			t.Helper()
			if len(a.Outputs) != 1 || string(a.Outputs[0].Bits) != string(in.Bits) {
				t.Errorf("%+v", a)
			}
		},
		Bad: map[string]target.Question{
			"NaN": {ID: "1", Model: "m", Inputs: []compare.Tensor{targettest.FP32("features", []int64{1}, float32(math.NaN()))}},
		},
	})
}

func TestJSON(t *testing.T) {
	targettest.Test(t, targettest.Subject{
		Open: open, Faults: faults(), Excused: excused,
		Question: target.Question{ID: "case-1", Model: "m", Version: "1", Request: json.RawMessage(`{"b": [1.50, "x"], "a": null}`)},
		Check: func(t testing.TB, a *target.Answer) {
			t.Helper()
			if string(a.Value) != `{"a":null,"b":[1.5,"x"]}` {
				t.Errorf("%s", a.Value)
			}
		},
		Bad: map[string]target.Question{
			"names used twice": {ID: "1", Model: "m", Request: json.RawMessage(`{"a":1,"a":2}`)},
			"both":             {ID: "1", Model: "m", Request: json.RawMessage(`{}`), Inputs: []compare.Tensor{targettest.FP32("features", []int64{1}, 1)}},
		},
	})
}

// What a program says after it was given up is nobody's answer, and what it
// said when it died is in the record.
func TestAProgramThatDies(t *testing.T) {
	tg, _ := open(t, func(n int) string { return []string{"close", "hang", ""}[min(n, 3)-1] })
	q := target.Question{ID: "1", Model: "m", Version: "1", Request: json.RawMessage(`{}`)}
	raw, err := tg.Encode(q)
	if err != nil {
		t.Fatal(err)
	}
	if x := tg.Send(t.Context(), raw); x.Failure == nil || !strings.Contains(x.Failure.Message, "segmentation fault") {
		t.Errorf("%+v", x.Failure)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if x := tg.Send(ctx, raw); x.Failure == nil || x.Failure.Class != "timeout" {
		t.Errorf("%+v", x)
	}
	if x := tg.Send(t.Context(), raw); x.Failure != nil {
		t.Errorf("the question after it: %v", x.Failure)
	}
}

func TestWhatMayBeStarted(t *testing.T) {
	t.Setenv(Allow, "/bin/cat:/bin/true")
	for url, ok := range map[string]bool{"exec:///bin/cat": true, "exec:///bin/sh": false, "exec://bin/cat": false, "exec:cat": false, "/bin/cat": false, "exec:///bin/cat?x=1": false} {
		if _, err := New(attest.Target{Protocol: Name, URL: url, Model: "m"}); (err == nil) != ok {
			t.Errorf("%s: %v", url, err)
		}
	}
	t.Setenv(Allow, "")
	if _, err := New(attest.Target{Protocol: Name, URL: "exec:///bin/cat", Model: "m"}); err == nil || !strings.Contains(err.Error(), "set ASSAY_EXEC=/bin/cat") {
		t.Errorf("nothing is allowed: %v", err)
	}
}
