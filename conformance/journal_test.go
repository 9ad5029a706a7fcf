package conformance

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/assay-dev/assay/verify/attest"
)

// The lines that are written out by hand are those of json.Marshal, to the byte,
// for any observation; also if it gets another field.
func TestLinesOfTheJournal(t *testing.T) {
	moment := rapid.Custom(func(t *rapid.T) time.Time {
		zone := time.FixedZone("", 60*rapid.IntRange(-720, 720).Draw(t, "zone"))
		return time.Unix(rapid.Int64Range(-1e10, 1e11).Draw(t, "s"), rapid.Int64Range(0, 999999999).Draw(t, "ns")).In(zone)
	})
	rapid.Check(t, func(t *rapid.T) {
		o := rapid.MakeCustom[attest.Observation](rapid.MakeConfig{Types: map[reflect.Type]*rapid.Generator[any]{reflect.TypeFor[time.Time](): moment.AsAny()}}).Draw(t, "observation")
		want, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		got, err := appendLine([]byte("before"), &o)
		if err != nil || string(got) != "before"+string(want)+"\n" {
			t.Fatalf("%s\n%s%v", got, want, err)
		}
	})
	for _, year := range []int{-1, 10000} {
		if _, err := appendLine(nil, &attest.Observation{SentAt: time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC)}); err == nil {
			t.Errorf("the year %d is written", year)
		}
	}
}

// The journal gives back, in order, what was added, in however many batches it is
// read, but for an answer that nobody would read again; and says where it is
// damaged.
func TestReadingTheJournal(t *testing.T) {
	const n, large, tooLarge = 3*batchLines + 7, 5, 6
	dir := t.TempDir()
	path := filepath.Join(dir, "observations.jsonl")
	j, err := openJournal(path, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		o := attest.Observation{Case: fmt.Sprintf("case-%05d", i), Attempt: 1, Status: 200, Response: []byte(strings.Repeat("x", i%50))}
		switch i {
		case large:
			o.Response = make([]byte, attest.MaxDocument*3/4-1000)
		case tooLarge:
			o.Response = make([]byte, attest.MaxDocument*3/4)
		}
		if err := j.add(&o); err != nil {
			t.Fatal(err)
		}
	}
	check := func(got []attest.Observation, err error) {
		t.Helper()
		if err != nil || len(got) != n {
			t.Fatalf("%d observations of %d: %v", len(got), n, err)
		}
		for i, o := range got {
			size := i % 50
			switch i {
			case large:
				size = attest.MaxDocument*3/4 - 1000
			case tooLarge:
				size = 0
			}
			if o.Case != fmt.Sprintf("case-%05d", i) || len(o.Response) != size || (o.Error != nil) != (i == tooLarge) || o.Error != nil && (o.Error.Class != "too-large" || o.Status != 0) {
				t.Fatalf("observation %d is %s with %d bytes", i, o.Case, len(o.Response))
			}
		}
	}
	check(j.read(&Suite{}))
	j.close()
	var again []attest.Observation
	each := func(o *attest.Observation) error { again = append(again, *o); return nil }
	if j, err = openJournal(path, each, nil); err != nil {
		t.Fatal(err)
	}
	check(again, nil)
	j.close()

	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(string(raw), "\n")
	at := len(strings.Join(lines[:2*batchLines], ""))
	lines[2*batchLines] = `{"case":"x","case":"y"}` + "\n" // which encoding/json lets pass
	if err := os.WriteFile(path, []byte(strings.Join(lines, "")), 0o644); err != nil {
		t.Fatal(err)
	}
	again = nil
	if _, err := openJournal(path, each, nil); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("damaged after %d bytes", at)) || len(again) != 2*batchLines {
		t.Errorf("a duplicate key: %v, after %d observations", err, len(again))
	}
}
