package oip

import (
	"testing"

	"github.com/assay-dev/assay/conformance/target"
	"github.com/assay-dev/assay/conformance/target/targettest"
	"github.com/assay-dev/assay/verify/attest"
)

func TestTarget(t *testing.T) {
	targettest.Test(t, func(t *testing.T, s *targettest.Server) target.Target {
		tg, err := New(attest.Target{Protocol: Name, URL: s.URL, Model: "m", Version: "1"})
		if err != nil {
			t.Fatal(err)
		}
		return tg
	})
}

func TestNestedData(t *testing.T) {
	q := target.Question{ID: "1", Model: "m", Outputs: []string{"p"}}
	a, err := Protocol{}.Decode(q, 200, []byte(`{"model_name":"m","id":"1","outputs":[{"name":"p","shape":[2,2],"datatype":"FP32","data":[[1,2],[3,4]]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	if v, err := a.Outputs[0].Values(); err != nil || len(v) != 4 || v[3] != 4 {
		t.Errorf("%v, %v", v, err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"model_name":"m","id":"1","outputs":[{"name":"p","shape":[1,2],"datatype":"FP32","data":[1,2]}]}`))
	f.Add([]byte(`{"error":"no"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		q := target.Question{ID: "1", Model: "m", Outputs: []string{"p"}}
		a, err := Protocol{}.Decode(q, 200, body)
		if (a == nil) == (err == nil) {
			t.Errorf("answer %v and error %v", a, err)
		}
		if a != nil {
			if len(a.Outputs) != 1 || a.Outputs[0].Name != "p" {
				t.Errorf("outputs %+v", a.Outputs)
			}
			if _, err := a.Outputs[0].Values(); err != nil {
				t.Error(err)
			}
		}
	})
}
