//! What the OpenAPI document says of every operation alike.

use utoipa::openapi::{
    ContentBuilder, OpenApi, Ref, RefOr, Required, Response, ResponseBuilder,
    path::{Operation, Parameter, ParameterIn},
    schema::{Schema, SchemaType, Type},
};

/// Where operations are that answer errors as envelopes.
const API: &str = "/api/";
/// The errors that all of them may answer: status, name, description.
const ERRORS: [(&str, &str, &str); 4] = [
    ("4XX", "Refused", "The request is refused."),
    ("503", "Away", "A part that is needed is away; try again."),
    ("504", "Late", "No answer came in time; a change may have happened."),
    ("507", "Full", "The disk is full."),
];

/// The document with what is true of all operations: where their parameters are, what errors they answer, and a name
/// for each that is its own.
pub(super) fn completed(mut document: OpenApi) -> OpenApi {
    for (path, item) in &mut document.paths.paths {
        let operations = [
            ("get", &mut item.get),
            ("put", &mut item.put),
            ("post", &mut item.post),
            ("patch", &mut item.patch),
            ("delete", &mut item.delete),
        ];
        for (method, operation) in operations {
            if let Some(operation) = operation {
                complete(method, path, operation);
            }
        }
    }
    let responses = &mut document.components.get_or_insert_default().responses;
    responses.extend(ERRORS.map(|(_, name, description)| (name.to_owned(), RefOr::T(envelope(description)))));
    document
}

fn complete(method: &str, path: &str, operation: &mut Operation) {
    for parameter in operation.parameters.iter_mut().flatten() {
        if let RefOr::T(parameter) = parameter
            && parameter.parameter_in == ParameterIn::Path
            && !path.contains(&format!("{{{}}}", parameter.name))
        {
            parameter.parameter_in = ParameterIn::Query;
            if may_be_left_out(parameter) {
                parameter.required = Required::False;
            }
        }
    }
    let words = path
        .trim_start_matches("/api/v1")
        .split(|letter: char| !letter.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty());
    operation.operation_id = Some([method].into_iter().chain(words).collect::<Vec<_>>().join("_"));
    if path.starts_with(API) {
        let responses = &mut operation.responses.responses;
        for (status, name, _) in ERRORS {
            responses.entry(status.to_owned()).or_insert_with(|| RefOr::Ref(Ref::from_response_name(name)));
        }
    }
}

fn envelope(description: &str) -> Response {
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("ErrorEnvelope"))).build();
    ResponseBuilder::new().description(description).content("application/json", content).build()
}

/// Whether a parameter of the query has a value when it is absent: those that may be null, and switches, which are off.
fn may_be_left_out(parameter: &Parameter) -> bool {
    match &parameter.schema {
        Some(RefOr::T(Schema::Object(object))) => match &object.schema_type {
            SchemaType::Type(one) => *one == Type::Boolean,
            SchemaType::Array(some) => some.contains(&Type::Null),
            SchemaType::AnyValue => true,
        },
        Some(RefOr::T(Schema::OneOf(_))) => true,
        Some(_) | None => false,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    #[test]
    fn every_operation_is_named_and_has_its_parameters_where_they_are() {
        let document = serde_json::to_value(super::super::openapi()).unwrap();
        let mut names = BTreeSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let id = operation["operationId"].as_str().unwrap();
                assert!(names.insert(id.to_owned()), "two operations are called {id}");
                let of_path =
                    operation["parameters"].as_array().into_iter().flatten().filter(|one| one["in"] == "path");
                let named: BTreeSet<&str> = of_path.map(|one| one["name"].as_str().unwrap()).collect();
                let wanted = path.split('{').skip(1).map(|rest| rest.split('}').next().unwrap()).collect();
                assert_eq!(named, wanted, "{method} {path}");
            }
        }
        assert!(names.len() > 90, "{}", names.len());
        let list = &document["paths"]["/api/v1/workloads"]["get"];
        assert_eq!(
            (&list["parameters"][0]["in"], &list["parameters"][0]["required"]),
            (&"query".into(), &false.into())
        );
        assert_eq!(list["responses"]["4XX"]["$ref"], "#/components/responses/Refused");
        let refused = &document["components"]["responses"]["Refused"]["content"]["application/json"]["schema"]["$ref"];
        assert_eq!(refused, "#/components/schemas/ErrorEnvelope");
        assert!(names.contains("get_workloads_name_versions"), "{names:?}");
    }
}
