package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// fillFlags gives every flag that the command line left out its value from
// the environment (--grpc-addr from ASSAY_GRPC_ADDR) or else from the YAML
// file of --config (grpc-addr: …). A key of the file that no command has is
// an error: a misspelt setting must not be a silent default.
func fillFlags(cmd *cobra.Command) error {
	var err error
	set := func(f *pflag.Flag, value, from string) {
		if e := cmd.Flags().Set(f.Name, value); e != nil && err == nil {
			err = usagef("%s: %w", from, e)
		}
	}
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		name := "ASSAY_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		if value, ok := os.LookupEnv(name); ok && !f.Changed && f.Name != "help" {
			set(f, value, name)
		}
	})
	path := cmd.Flag("config").Value.String()
	if err != nil || path == "" {
		return err
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("reading the configuration: %w", err)
	}
	var values map[string]yaml.Node
	if err := yaml.Unmarshal(raw, &values); err != nil {
		return fmt.Errorf("configuration %s: %w", path, err)
	}
	known := map[string]bool{}
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		c.LocalFlags().VisitAll(func(f *pflag.Flag) { known[f.Name] = true })
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(cmd.Root())
	for key, node := range values {
		if !known[key] {
			return usagef("configuration %s, line %d: no flag is called %q", path, node.Line, key)
		}
		if node.Kind != yaml.ScalarNode {
			return usagef("configuration %s, line %d: %s must be a single value", path, node.Line, key)
		}
		if f := cmd.Flags().Lookup(key); f != nil && !f.Changed {
			set(f, node.Value, fmt.Sprintf("configuration %s, line %d", path, node.Line))
		}
	}
	return err
}
