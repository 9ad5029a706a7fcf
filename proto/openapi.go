// Package proto holds the definition of the registry's gRPC and REST
// interface. The sources and what is generated from them are in assay/v1; 'make
// generate' makes it again.
package proto

import _ "embed"

// OpenAPI describes the REST interface (OpenAPI 2.0, JSON).
//
//go:embed assay.swagger.json
var OpenAPI []byte
