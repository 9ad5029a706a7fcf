package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"github.com/assay-dev/assay/conformance"
	"github.com/assay-dev/assay/conformance/target/oip"
	"github.com/assay-dev/assay/verify/attest"
)

// targetFlags say how an environment is reached.
type targetFlags struct {
	attest.Target
	options string
}

// register adds the flags; nameFlag is the one for the model's name there.
func (t *targetFlags) register(f *pflag.FlagSet, nameFlag string) {
	f.StringVar(&t.Protocol, "protocol", oip.Name, "how it is spoken to: "+strings.Join(conformance.Protocols(), ", "))
	f.StringVar(&t.URL, "url", "", "where it is reached")
	f.StringVar(&t.Model, nameFlag, "", "the model's name there")
	f.StringVar(&t.Version, "version", "", "the version that must answer")
	f.StringVar(&t.options, "options", "", "a file (YAML or JSON) with what else the protocol has to know; never a secret")
}

// target reads the options.
func (t *targetFlags) target() (attest.Target, error) {
	out := t.Target
	if t.options == "" {
		return out, nil
	}
	raw, err := os.ReadFile(t.options)
	if err != nil {
		return out, remedy(err, "name the file with --options")
	}
	var v map[string]any
	if err := yaml.Unmarshal(raw, &v); err != nil {
		return out, usagef("--options %s: %w", t.options, err)
	}
	text, err := attest.Marshal(v)
	if err != nil {
		return out, fmt.Errorf("--options %s: %w", t.options, err)
	}
	out.Options = string(text)
	return out, nil
}
