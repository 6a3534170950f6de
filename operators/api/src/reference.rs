//! The reference of all fields, generated from the types: what `kubectl explain` says, on one page.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};

use crate::{API_VERSION, crds, types};

/// The reference as a Markdown document.
pub fn markdown() -> String {
    let mut page = Page(format!(
        "<!-- Generated from the types beside it, by `cargo run -p garboard-api --example generate reference`. -->\n\n# Resources of {API_VERSION}\n\n\
         Every field, with what is allowed and what it is. `kubectl explain` says the same at the command line: `kubectl explain machine.spec`.\n"
    ));
    crds::of_types().iter().for_each(|definition| page.kind(definition));
    page.0
}

struct Page(String);

impl Page {
    fn line(&mut self, line: &str) {
        self.0.push_str(line);
        self.0.push('\n');
    }

    fn kind(&mut self, definition: &CustomResourceDefinition) {
        let names = &definition.spec.names;
        let schemas = definition.spec.versions.iter().filter_map(|version| version.schema.as_ref());
        for schema in schemas.filter_map(|schema| schema.open_api_v3_schema.as_ref()) {
            self.line(&format!("\n## {}\n", names.kind));
            self.line(schema.description.as_deref().unwrap_or_default());
            let short = names.short_names.iter().flatten().map(|name| format!("`{name}`")).collect::<Vec<_>>();
            if !short.is_empty() {
                self.line(&format!("\nShort for `{}`: {}.", names.plural, short.join(", ")));
            }
            for (part, schema) in schema.properties.iter().flatten() {
                self.line(&format!(
                    "\n### {} {part}\n\n{}\n",
                    names.kind,
                    schema.description.as_deref().unwrap_or_default()
                ));
                self.line("| field | type | allowed | what it is |\n|---|---|---|---|");
                let mut rules = Vec::new();
                self.below(schema, part, &mut rules);
                if !rules.is_empty() {
                    self.line("\nRules between fields:\n");
                    rules.iter().for_each(|rule| self.line(rule));
                }
            }
        }
    }

    /// A row for each field of an object, followed by those of the field itself.
    fn fields(&mut self, object: &JSONSchemaProps, at: &str, rules: &mut Vec<String>) {
        let required = object.required.as_deref().unwrap_or_default();
        for (name, schema) in object.properties.iter().flatten() {
            let at = format!("{at}.{name}");
            let mut allowed = allowed(schema);
            if required.contains(name) {
                allowed.insert(0, "required".to_owned());
            }
            // That of an object is made of those of its fields.
            if let Some(default) = schema.default.as_ref().filter(|default| !default.0.is_object()) {
                allowed.push(format!("default `{}`", default.0));
            }
            let cells = [
                // The table is that of the part, such as `spec`.
                format!("`{}`", at.split_once('.').map_or("", |(_, below)| below)),
                type_words(schema),
                allowed.join("; "),
                schema.description.clone().unwrap_or_default(),
            ];
            self.line(&format!("| {} |", cells.map(|cell| escape(&cell)).join(" | ")));
            self.below(schema, &at, rules);
        }
    }

    fn below(&mut self, schema: &JSONSchemaProps, at: &str, rules: &mut Vec<String>) {
        for rule in schema.x_kubernetes_validations.iter().flatten() {
            let message = rule.message.as_deref().unwrap_or(&rule.rule);
            rules.push(format!("- `{at}`: {message}"));
        }
        match each(schema) {
            Some((each, mark)) => self.below(each, &format!("{at}{mark}"), rules),
            None => self.fields(schema, at, rules),
        }
    }
}

/// The schema of each item or entry, and how a path goes on to it.
fn each(schema: &JSONSchemaProps) -> Option<(&JSONSchemaProps, &'static str)> {
    match (&schema.items, &schema.additional_properties) {
        (Some(JSONSchemaPropsOrArray::Schema(each)), _) => Some((each, "[]")),
        (_, Some(JSONSchemaPropsOrBool::Schema(each))) => Some((each, ".*")),
        _ => None,
    }
}

fn type_words(schema: &JSONSchemaProps) -> String {
    let word = match schema.type_.as_deref() {
        Some("object") if schema.additional_properties.is_some() => "mapping of",
        Some("object") => "object",
        Some("array") => "list of",
        Some("string") => "text",
        Some("boolean") => "true or false",
        Some("integer") => "whole number",
        Some("number") => "number",
        None if schema.x_kubernetes_int_or_string == Some(true) => "whole number or text",
        _ => "any",
    };
    match each(schema) {
        Some((each, _)) => format!("{word} {}", type_words(each)),
        None => word.to_owned(),
    }
}

/// What is allowed, each bound in words; for a list, of the list and of its items.
fn allowed(schema: &JSONSchemaProps) -> Vec<String> {
    let mut words = Vec::new();
    if let Some(values) = &schema.enum_ {
        let values: Vec<_> = values.iter().map(|value| format!("`{}`", value.0.as_str().unwrap_or_default())).collect();
        words.push(values.join(", "));
    }
    match (schema.minimum, schema.maximum) {
        (Some(low), Some(high)) => words.push(format!("{low} to {high}")),
        (Some(low), None) => words.push(format!("from {low}")),
        (None, Some(high)) => words.push(format!("up to {high}")),
        (None, None) => {}
    }
    if let Some(pattern) = &schema.pattern {
        words.push(types::pattern_words(pattern).unwrap_or(pattern).to_owned());
    }
    let most = [(schema.max_length, "characters"), (schema.max_items, "items"), (schema.max_properties, "entries")];
    for (most, unit) in most {
        if let Some(most) = most {
            words.push(format!("at most {most} {unit}"));
        }
    }
    if let Some((each, _)) = each(schema) {
        words.extend(allowed(each));
    }
    words
}

/// The text of a table's cell.
fn escape(text: &str) -> String {
    text.replace('|', "\\|").split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_reference_is_that_of_the_types() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/reference.md");
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            committed == markdown(),
            "reference.md is out of date: cargo run -p garboard-api --example generate reference > operators/api/reference.md"
        );
    }

    #[test]
    fn every_field_is_there_with_words() {
        let page = markdown();
        for row in [
            "| `network.links[].addresses` | list of text |",
            "| `kernel.sysctls` | mapping of text |",
            "| `dnsDomain` | text |",
        ] {
            assert!(page.contains(row), "{row}");
        }
        for row in page.lines().filter(|line| line.starts_with("| `")) {
            let cells: Vec<_> = row.trim_matches('|').split(" | ").collect();
            assert!(cells.last().is_some_and(|words| words.trim().ends_with('.')), "no words: {row}");
        }
    }
}
